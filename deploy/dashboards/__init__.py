"""The Grafana dashboards and the table of metrics, as code: `python -m deploy.dashboards .` rewrites both."""
