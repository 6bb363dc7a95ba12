"""
The worker side of celery-lookout: one line turns a worker's task signals into cumulative snapshots.

    import celery_lookout_signals
    celery_lookout_signals.install()

In the module that makes the Celery application, wherever that is imported: in workers it counts, in every process that
publishes it stamps messages with their time, in beat it tells of the schedule. What is published is described in
``docs/wire.md`` of celery-lookout.

Nothing outside the standard library and Celery is imported: adding this package must not move any version in a worker's
environment.
"""

import logging
import os

__version__ = "0.1.0"

#: Set to 0 in a process's environment, it makes ``install()`` do nothing there.
SWITCH = "CELERY_LOOKOUT_SIGNALS"


def install(*, interval: float = 5.0, peak_memory: bool = True) -> None:
    """
    Connect to Celery's signals. A second call changes nothing.

    *interval* is in seconds, from one snapshot to the next. *peak_memory* measures the largest resident size of each
    run, for which the kernel's high-water mark of the pool process is set back before each run (Linux, prefork and solo
    pools): switch it off where another tool in the worker reads that mark.

    Values that make no sense, and faults of ours, are logged and not raised: a worker without our numbers is better
    than no worker. Does nothing where the environment has ``CELERY_LOOKOUT_SIGNALS=0``.
    """
    if os.environ.get(SWITCH, "1").strip().lower() in ("0", "false", "no", "off"):
        return
    try:
        from . import _hooks

        _hooks.connect(interval=interval, peak_memory=peak_memory)
    except Exception:
        logging.getLogger(__name__).exception("not installed: this worker's tasks are not counted")
