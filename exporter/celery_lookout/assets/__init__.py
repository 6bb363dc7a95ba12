"""What Prometheus and Grafana are given: rules, runbooks and dashboards."""
