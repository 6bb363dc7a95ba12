"""
``celery-lookout demo``: an imaginary web shop with a broker, workers, beat, a load and the sidecar, on one machine.

``run`` wires it; ``broker`` finds or starts the broker; ``tasks`` and ``load`` are the shop; ``status`` reads the
sidecar's own metrics; ``processes`` and ``guard`` see to it that nothing outlives the demo. Celery is imported only in
the child processes.
"""
