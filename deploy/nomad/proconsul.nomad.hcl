# The gateway on every client of a Nomad cluster, in front of the services that Nomad registers in Consul:
#
#   nomad var put nomad/jobs/proconsul consul_token=... admin_token=...
#   nomad job run proconsul.nomad.hcl
#
# A service joins by its name alone; see `job "orders"` in the comment at the end.
variable "image" {
  type        = string
  default     = "proconsul:latest"
  description = "The gateway's image, best pinned by its digest."
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

job "proconsul" {
  datacenters = var.datacenters
  type        = "system"
  priority    = 80

  # One client after the other, and back where the new one does not turn healthy.
  update {
    max_parallel      = 1
    min_healthy_time  = "15s"
    healthy_deadline  = "3m"
    progress_deadline = "0s"
    auto_revert       = true
  }

  group "gateway" {
    network {
      mode = "host"
      port "http" {
        static = 8080
      }
      port "admin" {
        static = 8081
      }
    }

    # The gateway registers itself under registration.name; this one is for those who scrape and look.
    service {
      name = "proconsul-admin"
      port = "admin"
      tags = ["metrics"]

      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        interval = "5s"
        timeout  = "2s"
      }
    }

    restart {
      attempts = 10
      interval = "5m"
      delay    = "2s"
      mode     = "delay"
    }

    task "proconsul" {
      driver = "docker"

      config {
        image           = var.image
        network_mode    = "host"
        args            = ["run", "-c", "${NOMAD_TASK_DIR}/proconsul.yaml"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
      }

      # SIGTERM drains: unready, deregister, delay, then requests in flight finish. Longer than delay and grace together.
      kill_signal    = "SIGTERM"
      kill_timeout   = "45s"
      shutdown_delay = "2s"

      template {
        destination   = "local/proconsul.yaml"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        data          = <<-YAML
          version: 1
          listen: [{name: public, addr: ":8080"}]
          admin:
            addr: ":8081"
            tokens: [{name: nomad, role: operator, token: "$${env:ADMIN_TOKEN}"}]
          consul:
            addr: "127.0.0.1:8500"
            token: "$${env:CONSUL_TOKEN}"
          registration: {enabled: true, name: proconsul}
          shutdown: {delay: 5s, grace: 30s}
          routes:
            - name: orders
              match: {path: "/api/orders/**"}
              upstream: {service: orders, strip: /api/orders}
        YAML
      }

      template {
        destination = "secrets/tokens.env"
        env         = true
        change_mode = "restart"
        data        = <<-ENV
          {{ with nomadVar "nomad/jobs/proconsul" }}
          CONSUL_TOKEN={{ .consul_token }}
          ADMIN_TOKEN={{ .admin_token }}
          {{ end }}
        ENV
      }

      resources {
        cpu        = 1000
        memory     = 256
        memory_max = 1024
      }
    }
  }
}

# A service behind the gateway needs nothing but its registration:
#
#   job "orders" {
#     group "orders" {
#       count = 3
#       network { port "http" {} }
#       service {
#         name = "orders"
#         port = "http"
#         meta { version = "v2" }
#         check { type = "http", path = "/healthz", interval = "2s", timeout = "1s" }
#       }
#     }
#   }
