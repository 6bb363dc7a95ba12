"""
Each single right of docs/permissions.md is needed: without it something is not seen, and what is missing is named.

That all of them together are enough is the matter of test_permissions.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlsplit

import pytest
import redis

from celery_lookout.broker import Broker
from celery_lookout.errors import LookoutError
from celery_lookout.intake.amqp import AmqpEvents
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.redis import RedisEvents
from celery_lookout.intake.snapshots_amqp import AmqpSnapshots
from celery_lookout.intake.snapshots_redis import RedisSnapshots
from celery_lookout.logs import LogfmtFormatter
from celery_lookout.probes.pidbox import Pidbox
from celery_lookout.probes.publishing import PublishingProbe
from celery_lookout.probes.rabbitmq import RabbitProbe
from celery_lookout.probes.redis import RedisProbe
from tests import conftest
from tests.acceptance.test_permissions import commands
from tests.servers.process import wait_until
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar

#: Seconds for workers to answer; there are none.
NOBODY_SECONDS = 0.05

[[_, *REDIS_USER]] = commands("Redis 7 and Valkey")
REDIS_START, REDIS_RIGHTS = REDIS_USER[:4], REDIS_USER[4:]

#: What names these; all others are named as they stand.
REDIS_NAMES = {"on": "user is disabled", ">secret": "password", "%R~*": "on the broker's keys"}


def problem_of(attempt: Callable[[], object]) -> str:
    """Return what *attempt* fails with, an empty text if it does not."""
    try:
        attempt()
    except LookoutError as error:
        return f"{error}\n"
    return ""


def name_of(right: str) -> str:
    """Return the words by which a right of Redis is named: its command, or its pattern of keys or channels."""
    return REDIS_NAMES.get(right) or re.sub(r"^%RW~|^&", "", right.strip("()").split()[0])


def is_named(right: str, text: str) -> bool:
    """Say whether *text* names the right as the page writes it, or its command as Redis does."""
    name = name_of(right)
    return name in text or f"'{name.removeprefix('+')}'" in text


@pytest.fixture(scope="module")
def redis_of_rights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("rights")) as server:
        yield server


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, as users see it."""
    caplog.handler.setFormatter(LogfmtFormatter())
    return caplog


def give(server: RedisServer, rights: list[str]) -> str:
    """Give the user *rights* and no others, and Redis one of everything there is to see; return the broker URL."""
    with redis.Redis.from_url(server.url()) as admin:
        admin.execute_command(*REDIS_START, *rights)
        admin.flushall()
        admin.script_flush()
        admin.lpush("celery", "{}")
        admin.sadd("_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
        admin.hset("unacked", "tag", "{}")
        admin.zadd("unacked_index", {"tag": time.time()})
        admin.xadd("celery-lookout.signals.v1", {"body": "{}"})
        # What a consumer left behind that is no more: kombu tidies up after it.
        admin.sadd("_kombu.binding.gone", "member")
        admin.zadd("_kombu.binding_deadlines", {"gone": 1})
    return server.url().replace("://", f"://{REDIS_USER[2]}:secret@")


def redis_problems(url: str) -> str:
    """Do once what the sidecar does again and again, and return all that is said to be wrong."""
    broker = Broker(url, transport_options={"polling_interval": NOBODY_SECONDS})  # else closing takes a second
    probe, pidbox = RedisProbe(broker), Pidbox(broker)
    events = RedisEvents(broker, EventDecoder(lambda *_: None))
    readers = [RedisSnapshots(broker), RedisSnapshots(broker)]  # the second comes after a restart
    found = [
        problem_of(probe.discover),
        problem_of(lambda: probe.collect(["celery"])),
        probe.refusal or "",
        problem_of(lambda: pidbox.ask("ping", timeout=NOBODY_SECONDS)),
        *[problem_of(reader.read) for reader in readers],
        problem_of(lambda: subscribe(events)),
    ]
    for close in (probe.close, pidbox.close, events.close, *[reader.close for reader in readers]):
        close()
    return "".join(found)


def subscribe(events: RedisEvents) -> None:
    events.open()
    wait_until(lambda: events.read(time.time())[1], 5, "no answer")


@pytest.mark.redis
def test_with_all_its_rights_redis_refuses_nothing(redis_of_rights: RedisServer, log: pytest.LogCaptureFixture) -> None:
    assert redis_problems(give(redis_of_rights, REDIS_RIGHTS)) + log.text == ""
    with redis.Redis.from_url(redis_of_rights.url()) as admin:
        assert not admin.exists("_kombu.binding.gone")


@pytest.mark.redis
@pytest.mark.parametrize("right", REDIS_RIGHTS)
def test_a_right_that_is_missing_on_redis_is_named(
    right: str, redis_of_rights: RedisServer, log: pytest.LogCaptureFixture
) -> None:
    url = give(redis_of_rights, [other for other in REDIS_RIGHTS if other != right])
    said = redis_problems(url) + log.text
    assert is_named(right, said), said or "nothing fails"


@pytest.mark.redis
def test_the_status_page_names_it_until_it_is_given_back(
    own_redis: RedisServer, start_sidecar: Callable[..., Sidecar]
) -> None:
    """One right of each part of the sidecar, taken from under a running one."""
    sidecar = start_sidecar(give(own_redis, REDIS_RIGHTS), "--control.interval", "1", "--probe.interval", "0.2")

    def hints() -> str:
        return sidecar.get("/api/v1/status").body.decode()

    with redis.Redis.from_url(own_redis.url()) as admin:
        for right in ("+hlen", "+xreadgroup", "+brpop", "&/0.celeryev/*"):
            admin.execute_command(*REDIS_START, *[other for other in REDIS_RIGHTS if other != right])
            admin.client_kill_filter(user=REDIS_USER[2])
            wait_until(lambda right=right: is_named(right, hints()), 30, f"{right} is not named")  # type: ignore[misc]
            admin.execute_command(*REDIS_START, *REDIS_RIGHTS)
            wait_until(lambda: "permissions.md" not in hints(), 30, f"without {right} for ever")
        assert sidecar.value("celery_exporter_broker_up") == 1


RABBIT_ADD, RABBIT_PERMISSIONS, RABBIT_TAGS = commands("RabbitMQ")
RABBIT_USER, RABBIT_PASSWORD = RABBIT_ADD[2:]
RABBIT_RIGHTS = {
    kind: pattern.removeprefix("^(").removesuffix(")$").split("|")
    for kind, pattern in zip(("configure", "write", "read"), RABBIT_PERMISSIONS[5:], strict=True)
}


@pytest.fixture
def rabbit_user(rabbit_broker: conftest.Broker) -> Iterator[Callable[[dict[str, list[str]], str], str]]:
    """Return a function that makes the page's user with these rights and tags, and returns all that is wrong then."""
    server = rabbit_broker.server
    assert isinstance(server, RabbitServer)

    def problems(rights: dict[str, list[str]], tags: str) -> str:
        server.management("PUT", f"users/{RABBIT_USER}", {"password": RABBIT_PASSWORD, "tags": tags})
        patterns = {kind: f"^({'|'.join(names)})$" for kind, names in rights.items()}
        server.management("PUT", f"permissions/{quote(rabbit_broker.vhost)}/{RABBIT_USER}", patterns)
        url = server.url(rabbit_broker.vhost, RABBIT_USER, RABBIT_PASSWORD)
        return rabbit_problems(url, urlsplit(server.management_url)._replace(path="").geturl())

    yield problems
    server.management("DELETE", f"users/{RABBIT_USER}")


def rabbit_problems(url: str, management_url: str) -> str:
    """As redis_problems."""
    broker = Broker(url)
    events = AmqpEvents(broker, EventDecoder(lambda *_: None))
    snapshots, pidbox, publishing = AmqpSnapshots(broker), Pidbox(broker), PublishingProbe(broker)
    probe = RabbitProbe(broker, management_url)
    found = [
        problem_of(events.open),
        problem_of(snapshots.read),
        problem_of(lambda: pidbox.ask("ping", timeout=NOBODY_SECONDS)),
        problem_of(publishing.is_blocked),
        problem_of(lambda: probe.collect(())),
        probe.management_problem or "",
    ]
    for close in (events.close, snapshots.close, pidbox.close, publishing.close, probe.close):
        close()
    return "".join(found)


Rabbit = Callable[[dict[str, list[str]], str], str]


@pytest.mark.rabbitmq
def test_with_all_its_rights_rabbitmq_refuses_nothing(rabbit_user: Rabbit) -> None:
    assert rabbit_user(RABBIT_RIGHTS, RABBIT_TAGS[3]) == ""


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in RABBIT_RIGHTS.items() for name in names])
def test_a_right_that_is_missing_on_rabbitmq_is_named(kind: str, name: str, rabbit_user: Rabbit) -> None:
    rights = RABBIT_RIGHTS | {kind: [other for other in RABBIT_RIGHTS[kind] if other != name]}
    said = rabbit_user(rights, RABBIT_TAGS[3])
    # Newer versions say the kind of right themselves.
    assert re.search(rf"access to .*'{name}'.* needs .*{kind}", said), said or "nothing fails"


@pytest.mark.rabbitmq
def test_a_tag_that_is_missing_on_rabbitmq_is_named(rabbit_user: Rabbit) -> None:
    assert f"'{RABBIT_TAGS[3]}'" in rabbit_user(RABBIT_RIGHTS, "")
