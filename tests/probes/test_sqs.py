from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.transport import SQS

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, ProbeFailed
from celery_lookout.probes.sqs import SqsProbe
from celery_lookout.readings import QueueReading
from tests import conftest
from tests.servers.celery_versions import ROOT
from tests.servers.process import free_port
from tests.servers.sqs import SqsServer
from tests.servers.workers import Client

MakeProbe = Callable[..., SqsProbe]


@pytest.fixture
def make_probe(sqs_broker: conftest.Broker) -> Iterator[MakeProbe]:
    """Return a function that makes a probe of the test's region: ``make_probe(queue_name_prefix="x-")``."""
    probes: list[SqsProbe] = []

    def make(url: str = sqs_broker.url, **options: Any) -> SqsProbe:
        probes.append(SqsProbe(Broker(url, transport_options={**sqs_broker.transport_options, **options})))
        return probes[-1]

    yield make
    for probe in probes:
        probe.close()


@pytest.fixture
def raw(sqs_broker: conftest.Broker, sqs_server: SqsServer) -> Any:
    """A boto3 client of the test's region."""
    return sqs_server.client(sqs_broker.transport_options["region"])


def names(raw: Any) -> list[str]:
    return [url.rpartition("/")[2] for url in raw.list_queues().get("QueueUrls", ())]


def test_messages_are_ready_then_in_flight_then_gone(
    sqs_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client], raw: Any
) -> None:
    client, probe = make_client(sqs_broker.url, broker_transport_options=sqs_broker.transport_options), make_probe()
    for _ in range(3):
        client.send("noop")
    assert probe.collect(["celery"]).queues == (QueueReading("celery", ready=3, unacked=0),)

    url = raw.get_queue_url(QueueName="celery")["QueueUrl"]
    [message] = raw.receive_message(QueueUrl=url)["Messages"]
    assert probe.collect(["celery"]).queues == (QueueReading("celery", ready=2, unacked=1),)

    raw.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert probe.collect(["celery"]).queues == (QueueReading("celery", ready=2, unacked=0),)


def test_reading_takes_no_message_and_makes_no_queue(make_probe: MakeProbe, raw: Any) -> None:
    url = raw.create_queue(QueueName="celery")["QueueUrl"]
    raw.send_message(QueueUrl=url, MessageBody="{}")
    probe = make_probe()
    for _ in range(3):
        probe.discover()
        assert [reading.name for reading in probe.collect(["celery", "missing"]).queues] == ["celery"]
        assert probe.collect([]).queues == ()
    assert names(raw) == ["celery"]
    [message] = raw.receive_message(QueueUrl=url, MessageSystemAttributeNames=["All"])["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_a_queue_comes_and_goes(make_probe: MakeProbe, raw: Any) -> None:
    probe = make_probe()
    assert probe.collect(["mail"]).queues == ()
    url = raw.create_queue(QueueName="mail")["QueueUrl"]
    assert [reading.name for reading in probe.collect(["mail"]).queues] == ["mail"]
    raw.delete_queue(QueueUrl=url)
    assert probe.collect(["mail"]).queues == ()


def test_names_are_celerys_and_not_those_on_sqs(
    sqs_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client], raw: Any
) -> None:
    options = {**sqs_broker.transport_options, "queue_name_prefix": "shop."}
    client = make_client(sqs_broker.url, broker_transport_options=options)
    client.send("noop", queue="mail.fast")
    client.send("noop", queue="orders.fifo")
    probe = make_probe(queue_name_prefix="shop.")
    assert names(raw) == ["shop-mail-fast", "shop-orders.fifo"]
    assert probe.discover() == {"mail-fast", "orders.fifo"}
    assert probe.collect(["mail-fast"]).queues == (QueueReading("mail-fast", ready=1, unacked=0),)
    # Once a worker has said what it is called, it is shown under that name alone.
    for both in (["mail.fast", "mail-fast"], ["mail-fast", "mail.fast"]):
        assert probe.collect(both).queues == (QueueReading("mail.fast", ready=1, unacked=0),)


def test_only_task_queues_with_the_prefix_are_found(make_probe: MakeProbe, raw: Any) -> None:
    ours = ("celery-lookout-signals-v1", "celeryev-6f1f", "host-celery-pidbox", "bcast-6f1f")
    for name in ("celery", "shop-celery", "shop-mail-dead-letters", *(f"shop-{name}" for name in ours)):
        raw.create_queue(QueueName=name)
    assert make_probe(queue_name_prefix="shop-").discover() == {"celery", "mail-dead-letters"}
    # Without a prefix nothing tells Celery's queues from the rest of the account.
    assert make_probe().discover() == frozenset()


def test_predefined_queues_are_found_and_no_other_is_asked_for(
    make_probe: MakeProbe, raw: Any, sqs_server: SqsServer
) -> None:
    urls = {name: raw.create_queue(QueueName=f"other-{name}")["QueueUrl"] for name in ("mail", "slow")}
    raw.create_queue(QueueName="celery")
    raw.send_message(QueueUrl=urls["slow"], MessageBody="{}")
    keys = {"access_key_id": "other", "secret_access_key": "secret"}
    probe = make_probe(
        predefined_queues={name: {"url": url, **keys} for name, url in urls.items()}
        | {"celery-lookout-signals-v1": {"url": "http://127.0.0.1:1/none", **keys}}
    )
    assert probe.discover() == {"mail", "slow"}
    assert {reading.name: reading.ready for reading in probe.collect(["mail", "slow", "celery"]).queues} == {
        "mail": 0,
        "slow": 1,
    }
    assert probe.collect([]).queues == ()


@pytest.mark.parametrize("shared", [True, False], ids=["clients shared by kombu", "clients apart"])
def test_brokers_do_not_share_the_clients_of_predefined_queues(
    shared: bool, make_probe: MakeProbe, sqs_server: SqsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:  # as before kombu 5.7
        monkeypatch.setattr(SQS.Channel, "_predefined_queue_clients", {})
    for region, count in ((f"apart-{shared}-1", 1), (f"apart-{shared}-2", 2)):
        raw = sqs_server.client(region)
        url = raw.create_queue(QueueName="mail")["QueueUrl"]
        probe = make_probe(region=region, predefined_queues={"mail": {"url": url}})
        for _ in range(count):
            raw.send_message(QueueUrl=url, MessageBody="{}")
        assert probe.collect(["mail"]).queues == (QueueReading("mail", ready=count, unacked=0),)


def test_an_endpoint_where_nobody_is_takes_seconds(make_probe: MakeProbe) -> None:
    probe = make_probe(f"sqs://key:hunter2@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="Could not connect to the endpoint URL") as caught:
        probe.collect(["celery"])
    assert time.monotonic() - started < 5
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_that_hangs_is_not_asked_again(make_probe: MakeProbe, own_sqs: SqsServer) -> None:
    """The user's own ``client-config`` goes over ours."""
    config = {"read_timeout": 1.0, "retries": {"total_max_attempts": 1}}
    probe = make_probe(own_sqs.url(), region="us-east-1", **{"client-config": config})
    own_sqs.client("us-east-1").create_queue(QueueName="celery")
    assert len(probe.collect(["celery"]).queues) == 1
    own_sqs.pause()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="Read timeout"):
        probe.collect(["celery"])
    assert time.monotonic() - started < 1.9
    own_sqs.resume()
    assert len(probe.collect(["celery"]).queues) == 1


def test_missing_rights_are_named(make_probe: MakeProbe, own_sqs: SqsServer) -> None:
    user = own_sqs.add_user([{"Effect": "Allow", "Action": "sqs:ListQueues"}])
    probe = make_probe(own_sqs.url(user))
    probe.collect([])
    with pytest.raises(ProbeFailed, match="sqs:GetQueueUrl and sqs:GetQueueAttributes") as caught:
        probe.collect(["celery", "mail"])
    assert user[1] not in str(caught.value)


def test_wrong_credentials_are_not_shown(make_probe: MakeProbe, own_sqs: SqsServer) -> None:
    own_sqs.add_user([{"Effect": "Allow", "Action": "sqs:ListQueues"}])
    with pytest.raises(ProbeFailed, match="InvalidClientTokenId") as caught:
        make_probe(own_sqs.url(("AKIAWRONG", "hunt/er2"))).collect(["celery"])
    assert "er2" not in str(caught.value)


def test_a_queue_that_may_not_be_read_is_left_out(make_probe: MakeProbe, own_sqs: SqsServer) -> None:
    """Moto has no rights for single queues, so here it is one whose keys are wrong."""
    region = "us-east-1"
    url = own_sqs.client(region).create_queue(QueueName="mail")["QueueUrl"]
    key, secret = own_sqs.add_user([{"Effect": "Allow", "Action": "sqs:GetQueueAttributes"}])
    probe = make_probe(
        own_sqs.url(),
        region=region,
        predefined_queues={
            "mail": {"url": url, "access_key_id": key, "secret_access_key": secret},
            "slow": {"url": url, "access_key_id": "AKIAWRONG", "secret_access_key": "wrong"},
        },
    )
    assert [reading.name for reading in probe.collect(["slow", "mail"]).queues] == ["mail"]


def test_without_boto3_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['botocore'] = sys.modules['botocore.exceptions'] = None;"
        "from celery_lookout.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor", "--seconds", "1", "--broker", "sqs://key:hunter2@"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "exporter")},
    )
    assert done.returncode != 0
    assert "pip install 'celery-lookout[sqs]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
