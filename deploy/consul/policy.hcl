# What the gateway's token may do, and nothing else:
#
#   consul acl policy create -name proconsul -rules @policy.hcl
#   consul acl token create -description 'proconsul gateway' -policy-name proconsul
#
# Who may write to the keys below decides where requests go: treat that as root.

# The instances of every service. To show the gateway fewer services, name them instead of the prefix.
service_prefix "" {
  policy = "read"
}

# Addresses and checks of nodes; without it instances are left out without a word.
node_prefix "" {
  policy = "read"
}

# The gateway registers itself under this name (registration.name).
service "proconsul" {
  policy = "write"
}

# Routes and settings of the fleet.
key_prefix "proconsul/" {
  policy = "read"
}

# Registering with an agent asks the agent.
agent_prefix "" {
  policy = "read"
}
