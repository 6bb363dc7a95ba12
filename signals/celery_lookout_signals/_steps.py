"""Our step among those that Celery starts with each connection to the broker: it sets the timer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps

from ._guard import guarded

if TYPE_CHECKING:
    from ._worker import WorkerSide

#: Where the application keeps the worker's side: Celery makes the step itself, and gives it only the consumer.
_ATTRIBUTE = "celery_lookout_signals"


class SnapshotStep(bootsteps.StartStopStep):
    """
    Calls the worker's side again and again while the worker is connected.

    A step, not ``worker_ready``: with the connection Celery's timer loses its entries, and steps are started anew.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    # Celery passes it by position, and its own steps rename it too.
    def start(self, consumer: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Celery is connected and consumes."""
        guarded(self._start)(consumer)

    def _start(self, consumer: Any) -> None:
        from ._worker import TICK_SECONDS

        worker: WorkerSide = getattr(consumer.app, _ATTRIBUTE)
        worker.follow(consumer)
        self._timer = consumer.timer.call_repeatedly(TICK_SECONDS, guarded(worker.tick))

    def stop(self, consumer: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        """The connection is gone, or the worker stops."""
        guarded(self._stop)(consumer)

    def _stop(self, consumer: Any) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            consumer.timer.cancel(timer)
        if consumer.blueprint.state == bootsteps.CLOSE:
            # The worker waits for what runs, and many are killed while they wait.
            worker: WorkerSide = getattr(consumer.app, _ATTRIBUTE)
            worker.flush(final=False)


def add_step(app: Any, worker: WorkerSide) -> None:
    """Add the step to *app*'s workers, to call *worker*."""
    setattr(app, _ATTRIBUTE, worker)
    app.steps["consumer"].add(SnapshotStep)
