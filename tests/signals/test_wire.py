"""
The wire format from both sides.

Neither package imports the other, so what they must agree on is written twice. Here it is held together, and to
``docs/wire.md``.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
import pytest

from celery_lookout import snapshots as read
from celery_lookout.intake import snapshots_amqp, snapshots_kombu
from celery_lookout.intake.snapshot_source import NAME
from celery_lookout.intake.snapshots import SnapshotDecoder
from celery_lookout.metrics import tasks as buckets
from celery_lookout.probes.message_tail import PUBLISHED_HEADER
from celery_lookout.state.snapshots import EXCEPTIONS, EXEMPLARS, MOVES
from celery_lookout_signals import _channel, _snapshot, _stamp, _totals
from celery_lookout_signals._records import OUTCOMES, Failure, Run
from celery_lookout_signals._snapshot import Envelope, parts, wire_failures
from celery_lookout_signals._totals import Totals
from tests.docs.write import DOCS

PAGE = (DOCS / "wire.md").read_text("utf-8")

_found = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
assert _found is not None
EXAMPLE: dict[str, Any] = json.loads(_found[1])

#: When the example was written.
AT = EXAMPLE["at"]


def test_names_and_bounds_agree() -> None:
    assert _channel.NAME == NAME
    assert _channel.PLAIN_NAME == snapshots_kombu.QUEUE
    assert _channel.QUEUE_ARGUMENTS == snapshots_amqp.QUEUE_ARGUMENTS
    assert _snapshot.VERSION == read.VERSION
    assert _stamp.PUBLISHED_HEADER == PUBLISHED_HEADER


def test_histograms_have_the_same_buckets() -> None:
    assert _totals.RUNTIME_BUCKETS == buckets.RUNTIME_BUCKETS
    assert _totals.WAIT_BUCKETS == buckets.WAIT_BUCKETS
    assert _totals.PEAK_BUCKETS == buckets.PEAK_MEMORY_BUCKETS


def every_key() -> set[str]:
    """Return all keys that rows of a worker can have."""
    totals = Totals()
    row = totals.row("task", "queue")
    for value in (*_totals.RUNTIME_BUCKETS, *_totals.WAIT_BUCKETS, 1e9):
        for outcome in OUTCOMES[:-1]:
            row.count_start(value)
            totals.count_received("task", "queue", redelivered=True)
            row.count_end(Run("task", "queue", outcome, "Boom", retries=1, runtime=value, cpu=1.0, growth=1, peak=1))
    for peak in (*_totals.PEAK_BUCKETS, 1e12):
        row.count_end(Run("task", "queue", "ignored", peak=int(peak)))
    for exception in ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError"):
        row.count_end(Run("task", "queue", "failed", exception))
    return set(row.totals)


def test_the_sidecar_knows_every_key_that_a_worker_sends_and_no_other() -> None:
    sent = {key for key in every_key() if key.partition(":")[0] not in EXCEPTIONS}
    assert sent == MOVES.keys()
    assert {key.partition(":")[0] for key in every_key() - sent} == EXCEPTIONS.keys()


def every_exemplar() -> set[str]:
    """Return all keys that a worker's exemplars can have."""
    row = Totals().row("task", "queue")
    found: set[str] = set()
    for value in (*_totals.RUNTIME_BUCKETS, *_totals.WAIT_BUCKETS, 1e9):
        row.exemplify_start(value, "trace", "id", AT)
        for outcome in OUTCOMES[:-1]:
            for exception in ("Boom", "SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError"):
                row.exemplify_end(Run("task", "queue", outcome, exception, runtime=value, trace_id="trace"))
        found |= row.exemplars.keys()
        row.exemplars.clear()
    return found


def test_the_sidecar_shows_every_exemplar_that_a_worker_tells_and_no_other() -> None:
    exceptions = {key for key in every_exemplar() if key.startswith("exception:")}
    assert every_exemplar() - exceptions == EXEMPLARS.keys()
    assert len(exceptions) == 4
    # Each is of a total.
    assert EXEMPLARS.keys() < MOVES.keys()


def test_every_key_is_on_the_page() -> None:
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    for key in every_key():
        general = re.sub(r"^(exception|retry_exception):.*", r"\1:CLASS", key)
        general = re.sub(r":(succeeded|failed|retried):", ":OUTCOME:", re.sub(r":\d+$", ":BUCKET", general))
        assert general in documented


def example_totals() -> Totals:
    """Return what the example's worker has counted, as its code counts; what it had counted before is sent."""
    totals = Totals()
    resize, mail = ("shop.resize", "celery"), ("shop.mail", "mail")

    def run(name: tuple[str, str], outcome: str, **measured: Any) -> None:
        totals.count_received(*name, redelivered=False)
        totals.row(*name).count_start(measured.pop("wait"))
        totals.row(*name).count_end(Run(*name, outcome, peak=55_472_128, **measured))

    for number in range(47):
        run(resize, "succeeded", runtime=0.066, wait=0.009, cpu=0.0617, ended_at=AT - 60 + number)
    totals.count_received(*resize, redelivered=False)  # it waits in the worker
    [part] = parts(totals, everything=False)
    part.was_taken()
    run(resize, "succeeded", runtime=0.0569, wait=0.0152, cpu=0.0519, ended_at=AT - 1.212)
    totals.row(*resize).count_start(0.0111)
    run(mail, "failed", exception="SMTPException", runtime=2.004, wait=0.0031, cpu=0.0017, ended_at=AT - 2.602)
    trace_id, task_id = (EXAMPLE["failures"][0][name] for name in ("trace_id", "task_id"))
    ended = Run(*mail, "failed", "SMTPException", runtime=2.004, ended_at=AT - 2.602, trace_id=trace_id)
    totals.row(*mail).exemplify_start(0.0031, trace_id, task_id, ended.ended_at)
    totals.row(*mail).exemplify_end(ended._replace(task_id=task_id))
    return totals


def test_the_example_is_what_the_worker_package_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((EXAMPLE["started_at"], AT))
    monkeypatch.setattr(time, "time", lambda: next(times))
    envelope = Envelope("worker", EXAMPLE["node"])
    envelope._boot, envelope._seq = EXAMPLE["boot"], EXAMPLE["seq"] - 1
    [part] = parts(example_totals(), everything=False)
    own = {"v", "kind", "node", "boot", "seq", "at", "started_at", "interval", "final", "rows", "failures"}
    gauges = {name: value for name, value in EXAMPLE.items() if name not in own}
    failures = wire_failures([Failure(**failure) for failure in EXAMPLE["failures"]])
    text = envelope.wrap(gauges | {"rows": part.wire(), "failures": failures}, interval=5.0, final=False)
    assert json.loads(text) == EXAMPLE


def test_the_sidecar_reads_all_of_the_example() -> None:
    refused: list[tuple[str, int]] = []
    decoder = SnapshotDecoder(lambda reason, count: refused.append((reason, count)))
    snapshot = decoder.body(json.dumps(EXAMPLE).encode(), AT)
    assert refused == []
    assert isinstance(snapshot, read.WorkerSnapshot)
    assert {field.name for field in msgspec.structs.fields(snapshot)} == EXAMPLE.keys() - {"kind"}
    # Nothing was dropped on the way: what was read is what was written.
    assert msgspec.json.decode(msgspec.json.encode(snapshot)) == EXAMPLE


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (read.Row, EXAMPLE["rows"][0].keys()),
        (read.Failure, EXAMPLE["failures"][0].keys()),
        (read.Failure, set(Failure._fields)),
        (read.Entry, {"entry", "task", "last_sent_at", "next_due_at", "crontab", "timezone", "every"}),
    ],
)
def test_parts_have_the_same_fields(shape: type[msgspec.Struct], fields: set[str]) -> None:
    assert {field.name for field in msgspec.structs.fields(shape)} == set(fields)
