"""
What is connected to what: the only file that knows the names of Celery's signals.

Handlers stay connected in every process and look at the state to see whether it is theirs to act. Those that run for
every task are connected where there is something to do and lead there at once: a busy worker pays for each call on the
way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _guard
from ._guard import guarded
from ._stamp import stamp

if TYPE_CHECKING:
    from ._runs import Runs
    from ._worker import WorkerSide


class _State:
    """What this process is to us. A pool process inherits its parent's by the fork."""

    connected = False
    interval = 5.0
    peak_memory = True
    #: The worker whose main process this is.
    worker: WorkerSide | None = None
    #: The runs of this process, if tasks run in it.
    runs: Runs | None = None


def connect(*, interval: float, peak_memory: bool) -> None:
    """Connect everything, once. Raises ValueError for an *interval* that is none."""
    if not 0.5 <= interval <= 3600 or math.isnan(interval):
        raise ValueError(f"interval={interval!r} must be a number of seconds from 0.5 to 3600")
    if _State.connected:
        return
    _State.connected = True
    _State.interval, _State.peak_memory = float(interval), peak_memory
    from celery import signals

    for signal, handler in (
        (signals.before_task_publish, stamp),
        (signals.worker_init, _worker_init),
        (signals.worker_process_init, _worker_process_init),
        (signals.task_failure, _task_failure),
        (signals.task_revoked, _task_revoked),
        (signals.task_unknown, _task_unknown),
        (signals.worker_shutting_down, _worker_shutting_down),
        (signals.worker_shutdown, _worker_shutdown),
        (signals.beat_init, _beat_init),
    ):
        _connect(signal, handler)


def _connect(signal: Any, handler: Callable[..., None]) -> None:
    """Let *signal* call *handler*, and no other of ours of that name any more."""
    _connect_guarded(signal, guarded(handler))


def _connect_guarded(signal: Any, handler: Callable[..., None]) -> None:
    """Do the same for a *handler* that guards itself."""
    name = f"celery_lookout_signals.{handler.__name__}"
    signal.disconnect(dispatch_uid=name)
    signal.connect(handler, weak=False, dispatch_uid=name)


# What is called for every task guards itself: to collect all arguments and to pass them on takes longer than to look
# at those that matter.


def _connect_runs(runs: Runs) -> None:
    """Tasks run in this process."""
    from celery import signals

    def _task_prerun(task: Any = None, task_id: str = "", **_: Any) -> None:
        try:
            runs.begin(task, task_id)
        except Exception as error:  # noqa: BLE001  # the edge
            _guard.note("_task_prerun", error)

    def _task_postrun(
        task: Any = None, task_id: str = "", state: str | None = None, retval: Any = None, **_: Any
    ) -> None:
        try:
            runs.end(task, task_id, state, retval)
        except Exception as error:  # noqa: BLE001  # the edge
            _guard.note("_task_postrun", error)

    _State.runs = runs
    _connect_guarded(signals.task_prerun, _task_prerun)
    _connect_guarded(signals.task_postrun, _task_postrun)
    # Before others' handlers: OpenTelemetry's ends the span that the run belongs to, and may export it.
    handlers = signals.task_postrun.receivers
    handlers[:] = [*handlers[-1:], *handlers[:-1]]  # pyright: ignore[reportOptionalSubscript]  # a list in each signal


def _connect_received(received: Callable[[Any], None]) -> None:
    """Tasks are taken from the broker in this process."""
    from celery import signals

    def _task_received(request: Any = None, **_: Any) -> None:
        try:
            received(request)
        except Exception as error:  # noqa: BLE001  # the edge
            _guard.note("_task_received", error)

    _connect_guarded(signals.task_received, _task_received)


def _worker_init(sender: Any = None, **_: Any) -> None:
    from ._steps import add_step
    from ._worker import WorkerSide

    worker = _State.worker = WorkerSide(
        sender, interval=_State.interval, peak_memory=_State.peak_memory, on_runs=_connect_runs
    )
    _connect_received(worker.tasks.received)
    add_step(sender.app, worker)
    worker.announce()


def _worker_process_init(**_: Any) -> None:
    # Celery's solo pool sends this in the main process; a spawned child has no worker.
    worker = _State.worker
    if worker is not None and worker.pid != os.getpid():
        _State.worker = None
        _connect_runs(worker.run_in_child())
        _guard.take_faults()  # the parent's, and told by it


def _task_failure(
    sender: Any = None, task_id: str = "", exception: Any = None, einfo: Any = None, traceback: Any = None, **_: Any
) -> None:
    text = str(getattr(einfo, "traceback", None) or (traceback if isinstance(traceback, str) else ""))
    runs, worker = _State.runs, _State.worker
    if runs is not None and runs.has(task_id):
        runs.fail(sender, task_id, exception, text)
    elif worker is not None and type(exception).__name__ in ("TimeLimitExceeded", "WorkerLostError"):
        worker.tasks.died(task_id, exception, text)


def _task_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    worker = _State.worker
    if worker is not None:
        worker.tasks.revoked(vars(request), task=sender.name, terminated=bool(terminated), expired=bool(expired))


def _task_unknown(message: Any = None, name: Any = None, id: Any = None, **_: Any) -> None:  # noqa: A002  # Celery's name
    worker = _State.worker
    if worker is not None:
        worker.tasks.unknown(message, str(name), str(id))


def _worker_shutting_down(how: str = "", **_: Any) -> None:
    # After a warm shutdown worker_shutdown comes; of some cold ones this is the last that we hear.
    worker = _State.worker
    if worker is not None and how == "Cold":
        worker.flush(final=False)


def _worker_shutdown(**_: Any) -> None:
    worker = _State.worker
    if worker is not None:
        worker.flush(final=True)


def _beat_init(sender: Any = None, **_: Any) -> None:
    from ._beat import BeatSide

    BeatSide(sender, interval=_State.interval).follow()
