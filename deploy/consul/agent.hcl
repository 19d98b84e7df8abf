# A client agent on a machine that runs the gateway or services. Copy it to /etc/consul.d/ and fill in what is yours;
# check it with `consul validate /etc/consul.d/`.
datacenter = "dc1"
data_dir   = "/opt/consul"
log_level  = "INFO"

# Only this machine talks to the agent; the agents talk to each other on the private network.
client_addr = "127.0.0.1"
bind_addr   = "{{ GetPrivateIP }}"
retry_join  = ["consul-1.internal", "consul-2.internal", "consul-3.internal"]

# The gateway follows each service by a blocking query of its own: an agent that shares one connection's budget among
# hundreds of watches needs more than the default of 200.
limits {
  http_max_conns_per_client = 1000
}

# Answers of changes that are only a check's output are late by half of this; the gateway's page shows that output.
check_update_interval = "1m"

acl {
  enabled                  = true
  default_policy           = "deny"
  down_policy              = "extend-cache" # policies go on while the servers are away
  enable_token_persistence = true
}

ui_config {
  enabled = true
  # Each service's page links to the gateway's page of it.
  dashboard_url_templates {
    service = "https://gateway.internal/#/services/{{Service.Name}}"
  }
}

telemetry {
  prometheus_retention_time = "1m"
  disable_hostname          = true
}
