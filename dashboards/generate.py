"""Write the dashboards from code: ``python -m dashboards.generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from .exporter import board as exporter
from .frame import Board
from .overview import board as overview
from .queue import board as queue
from .slo import board as slo
from .task import board as task
from .worker import board as worker

FOLDER: Final = Path(__file__).parent

BOARDS: Final[dict[str, Callable[[], Board]]] = {
    "overview.json": overview,
    "queue.json": queue,
    "task.json": task,
    "worker.json": worker,
    "exporter.json": exporter,
    "slo.json": slo,
}


def render() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {name: board().json() for name, board in BOARDS.items()}


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).write_text(text, "utf-8")
        print(f"wrote dashboards/{name}")
