"""
Event messages as a cluster of workers sends them.

Task-sent comes alone, from the client. A worker's task events come in lists under ``task.multi``; their sizes follow
what 8 prefork processes on Redis were seen to send, which with the single task-sent makes 1.7 events per message.
"""

from __future__ import annotations

import base64
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

#: Events in one ``task.multi`` message, again and again; the mean is 2.3.
BATCHES: Final = (1, 1, 2, 2, 3, 5)

#: One task in so many fails, with a traceback.
FAILS_EVERY: Final = 50

HEARTBEAT_SECONDS: Final = 2.0

EXCHANGE: Final = "celeryev"

QUEUES: Final = ("mail", "orders", "reports", "search", "stock")


class Message(NamedTuple):
    """One message: where it goes, and one event or a list of them."""

    routing_key: str
    content: dict[str, Any] | list[dict[str, Any]]

    @property
    def task_events(self) -> int:
        """How many task events are in it."""
        return len(self.content) if isinstance(self.content, list) else self.routing_key.startswith("task.")


@dataclass(frozen=True)
class Load:
    """*events* task events at *rate* a second (0: as fast as can be) of *names* task names on *workers* workers."""

    events: int
    rate: int = 0
    workers: int = 10
    names: int = 50

    def messages(self) -> Iterator[Message]:
        """Yield what is sent, in its order: a task's life is spread over the lives of the next tasks."""
        seconds_each = 1 / (self.rate or 100_000)
        start, run = time.time(), time.time_ns() & 0xFFFFFFFF
        buffers: list[list[dict[str, Any]]] = [[] for _ in range(self.workers)]
        running: list[tuple[dict[str, Any], str] | None] = [None] * self.workers
        processed = [0] * self.workers
        sizes = itertools.cycle(BATCHES)
        size, sent, next_heartbeat = next(sizes), 0, start
        for number in range(max(1, self.events // 4)):
            now = start + sent * seconds_each
            if now >= next_heartbeat:
                next_heartbeat += HEARTBEAT_SECONDS
                for index in range(self.workers):
                    yield self._heartbeat(index, processed[index], now)
            worker = number % self.workers
            task_id = f"{run:08x}-0000-4000-8000-{number:012x}"
            who = {"hostname": f"worker{worker}@bench", "utcoffset": 0, "pid": 100 + worker, "clock": number}
            origin = {"root_id": task_id, "parent_id": None}
            call = {"name": f"shop.tasks.step_{number % self.names}", "args": "(1234, 'order')", "kwargs": "{}"}
            schedule = {"retries": 0, "eta": None, "expires": None}
            queue_name = QUEUES[number % len(QUEUES)]
            queue = {"queue": queue_name, "exchange": "", "routing_key": queue_name}
            client = {"hostname": "gen1@bench", "utcoffset": 0, "pid": 1, "clock": number}
            sent_fields = client | {"uuid": task_id} | origin | call | schedule | queue
            yield Message("task.sent", _at(now, sent_fields, "task-sent"))
            buffer = buffers[worker]
            buffer.append(_at(now, who | {"uuid": task_id} | call | origin | schedule, "task-received"))
            ended = running[worker]
            if ended is not None:
                buffer.append(_at(now, *ended))
            buffer.append(_at(now, who | {"uuid": task_id}, "task-started"))
            processed[worker] += 1
            outcome, kind = _outcome(number)
            running[worker] = who | {"uuid": task_id} | outcome, kind
            sent += 4
            while len(buffer) >= size:
                yield Message("task.multi", buffer[:size])
                del buffer[:size]
                size = next(sizes)
        for buffer, last in zip(buffers, running, strict=True):
            yield Message("task.multi", buffer + ([_at(time.time(), *last)] if last else []))

    @staticmethod
    def _heartbeat(index: int, processed: int, now: float) -> Message:
        content = {"hostname": f"worker{index}@bench", "utcoffset": 0, "pid": 100 + index, "clock": 1, "freq": 2.0}
        content |= {"active": 1, "processed": processed, "loadavg": [0.5, 0.4, 0.3], "sw_ident": "py-celery"}
        content |= {"sw_ver": "5.7.0", "sw_sys": "Linux"}
        return Message("worker.heartbeat", _at(now, content, "worker-heartbeat"))


def _at(timestamp: float, fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return an event; Celery writes its time and its type last."""
    return fields | {"timestamp": timestamp, "type": kind}


def _outcome(number: int) -> tuple[dict[str, Any], str]:
    if number % FAILS_EVERY == 0:
        frames = '  File "/srv/shop/tasks.py", line 10, in step\n    raise ValueError("no such order")\n' * 3
        traceback = f"Traceback (most recent call last):\n{frames}ValueError: no such order\n"
        return {"exception": "ValueError('no such order')", "traceback": traceback}, "task-failed"
    return {"result": "'done'", "runtime": 0.0125}, "task-succeeded"


def wire(url: str) -> Callable[[Message], bytes]:
    """Return what makes of a message the bytes that this broker is sent."""
    return amqp_bytes if url.startswith("amqp") else redis_bytes


def redis_bytes(message: Message) -> bytes:
    """Return a PUBLISH command with kombu's envelope; database 0."""
    body = base64.b64encode(json.dumps(message.content).encode()).decode()
    delivery = {"exchange": EXCHANGE, "routing_key": message.routing_key}
    properties = {"delivery_mode": 1, "delivery_info": delivery, "priority": 0, "body_encoding": "base64"}
    envelope = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": "worker@bench"},
        "properties": properties | {"delivery_tag": "4e1fdd8e-083b-42ee-aec5-29a0d131730b"},
    }
    parts = (b"PUBLISH", f"/0.{EXCHANGE}/{message.routing_key}".encode(), json.dumps(envelope).encode())
    return b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def amqp_bytes(message: Message) -> bytes:
    """Return the frames of one basic.publish on channel 1."""
    body = json.dumps(message.content).encode()
    header = _short("hostname") + b"S" + struct.pack(">I", 12) + b"worker@bench"
    properties = _short("application/json") + _short("utf-8") + struct.pack(">I", len(header)) + header + b"\x01\x00"
    flags = 1 << 15 | 1 << 14 | 1 << 13 | 1 << 12 | 1 << 11
    method = struct.pack(">HHH", 60, 40, 0) + _short(EXCHANGE) + _short(message.routing_key) + b"\x00"
    content = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    return b"".join(
        struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"
        for kind, payload in ((1, method), (2, content), (3, body))
    )


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
