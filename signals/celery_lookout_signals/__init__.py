"""
The worker side of celery-lookout: one import turns a worker's task signals into cumulative snapshots.

Nothing outside the standard library is imported here: the worker already has Celery, and adding this package must not
move any version in its environment.
"""

__version__ = "0.1.0"
