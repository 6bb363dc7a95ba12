"""A management API that is not what it should be: whatever it says, it takes seconds and is named."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import ProbeFailed
from celery_lookout.probes import management, rabbitmq
from celery_lookout.probes.management import Management
from celery_lookout.probes.rabbitmq import RabbitProbe

Say = Callable[[bytes, float], str]


@pytest.fixture
def api() -> Iterator[Say]:
    """
    Return a function that makes an API with one answer, and returns its URL: ``api(b"...", 0.1)``.

    The seconds lie between two bytes of it; without end, if there are no bytes.
    """
    stopped = threading.Event()
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes, seconds: float) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                parts = [answer] if not seconds else [answer[at : at + 1] for at in range(len(answer))]
                for part in parts:
                    if stopped.wait(seconds):
                        return
                    connection.sendall(part)
                if seconds and not answer:
                    stopped.wait()

    def make(answer: bytes, seconds: float) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer, seconds), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield make
    stopped.set()
    for listener in listeners:
        listener.close()


def ask(url: str) -> Any:
    return Management.locate(Broker("amqp://ada:secret@127.0.0.1//"), url).queues()


def page(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no answer"),
        (b"\x00\xff\x00\xffAMQP\r\n\r\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n[", "not RabbitMQ's list"),
        (page(b"<html>Sign in</html>"), "not RabbitMQ's list"),
        (page(b'{"error": "busy"}'), "not RabbitMQ's list"),
        (page(b'[{"name": 7}]'), "not RabbitMQ's list"),
        (page(b'[{"name": "q", "messages_unacknowledged": "many"}]'), "not RabbitMQ's list"),
        (page(b"[" * 100_000), "not RabbitMQ's list"),
        (page(b'[{"name": "q", "more": ' + b"[" * 100_000), "not RabbitMQ's list"),
        (page(b"", "503 Service Unavailable"), "HTTP status 503"),
        (page(b"", "301 Moved Permanently"), "HTTP status 301"),
        (page(b"", "401 Unauthorized"), "tag 'management'"),
        (page(b"", "403 Forbidden"), "may not see virtual host '/'"),
        (page(b'["' + b"x" * management._BODY_LIMIT + b'"]'), "larger than"),
    ],
)
def test_an_answer_that_is_none_is_named(answer: bytes, said: str, api: Say) -> None:
    with pytest.raises(ProbeFailed, match=said) as failure:
        ask(api(answer, 0.0))
    assert "secret" not in str(failure.value)


def test_an_answer_that_drips_is_not_waited_for(api: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the whole of it would take an hour."""
    monkeypatch.setattr(management, "ANSWER_SECONDS", 0.5)
    url = api(page(b"[" + b" " * 100_000 + b"]"), 0.03)
    with pytest.raises(ProbeFailed, match=r"not complete within 0\.5 s|no answer"):
        ask(url)


def test_one_that_hangs_is_not_waited_for(api: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "SOCKET_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ProbeFailed, match="timed out"):
        ask(api(b"", 1.0))


def test_after_a_failure_it_is_tried_soon_and_then_less_and_less() -> None:
    """A restart costs seconds of its numbers; for years of refusals RabbitMQ's log has better uses."""
    seconds = 0.0
    probe = RabbitProbe(Broker("amqp://localhost"), monotonic=lambda: seconds)
    asked: list[float] = []

    class Api:
        works = False

        def queues(self) -> tuple[()]:
            asked.append(seconds)
            if not self.works:
                raise ProbeFailed("no answer")
            return ()

    api = Api()
    probe._management = api  # type: ignore[assignment]
    for _ in range(1000):
        probe.discover()
        seconds += 2
    assert [b - a for a, b in itertools.pairwise(asked)][:4] == [6, 10, 20, 40]
    assert asked[-1] - asked[-2] == rabbitmq.MANAGEMENT_RETRY_SECONDS
    assert "no answer" in str(probe.management_problem)
    api.works = True
    seconds += rabbitmq.MANAGEMENT_RETRY_SECONDS
    probe.discover()
    assert probe.management_problem is None
    api.works = False
    probe.discover()
    seconds += 6
    asked.clear()
    probe.discover()
    assert asked, "the next failure is an event of its own"
