# Beside `agent -dev` in docker-compose.yml: every service's page in Consul links to the gateway's page of it.
ui_config {
  enabled = true
  dashboard_url_templates {
    service = "http://127.0.0.1:8081/#/services/{{Service.Name}}"
  }
}
