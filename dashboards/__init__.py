"""Grafana dashboards as code; ``python -m dashboards.generate`` writes the JSON files beside it."""
