"""What the world sees: metrics for Prometheus, health for the orchestrator, a status page for people."""
