"""A sidecar that makes a Celery cluster observable: Prometheus metrics from its events, queues and workers."""

__version__ = "0.1.0"
