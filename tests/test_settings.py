"""Options from the command line, the environment and the file; errors that name the option, and never a secret."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from celery_lookout import cli
from celery_lookout.errors import SettingsError
from celery_lookout.settings import OPTIONS, ListenAddress, Settings, read_file

Read = Callable[..., Settings]


@pytest.fixture
def read() -> Read:
    """Read settings as ``serve`` does: ``read("--broker", url, LOOKOUT_LOG_LEVEL="debug")``."""

    def run(*arguments: str, **environment: str) -> Settings:
        found: list[Settings] = []

        @click.command()
        @cli._with_options
        def serve(**given: Any) -> None:
            found.append(Settings.read(given))

        result = CliRunner(env={"CELERY_BROKER_URL": None, **environment}).invoke(
            serve, arguments, standalone_mode=False
        )
        if result.exception is not None:
            raise result.exception
        return found[0]

    return run


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Write a configuration file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "lookout.yml"
        path.write_text(text)
        return str(path)

    return write


REDIS = "redis://localhost/0"
DSN = "https://key@sentry.example/7"


def test_a_broker_is_enough(read: Read) -> None:
    settings = read("--broker", REDIS)
    (broker,) = settings.brokers
    assert (broker.url, broker.name, broker.kind) == (REDIS, None, "redis")
    assert settings == Settings(brokers=(broker,))


@pytest.mark.parametrize("variable", ["LOOKOUT_BROKER", "CELERY_BROKER_URL"])
def test_the_broker_may_come_from_the_environment(variable: str, read: Read) -> None:
    assert read(**{variable: REDIS}).brokers[0].url == REDIS


def test_our_own_variable_is_stronger_than_celerys(read: Read) -> None:
    assert read(LOOKOUT_BROKER=REDIS, CELERY_BROKER_URL="amqp://other//").brokers[0].url == REDIS


def test_the_command_line_is_stronger_than_the_environment_and_that_than_the_file(
    read: Read, file: Callable[[str], str]
) -> None:
    config = file("limit: {series: 1, queues: 1, workers: 1}\nbroker: redis://file/0\n")
    settings = read("--config", config, "--limit.series", "3", LOOKOUT_LIMIT_SERIES="2", LOOKOUT_LIMIT_QUEUES="2")
    assert settings.brokers[0].url == "redis://file/0"
    assert settings.series_limit == 3
    assert (settings.cluster.limits.queues, settings.cluster.limits.workers) == (2, 1)


def test_an_old_name_still_works(read: Read, file: Callable[[str], str]) -> None:
    assert read("--broker", REDIS, "--rabbitmq.replica", "b").replica == "b"
    assert read("--broker", REDIS, LOOKOUT_RABBITMQ_REPLICA="b").replica == "b"
    assert read("--broker", REDIS, "--config", file("rabbitmq.replica: b")).replica == "b"
    assert read("--broker", REDIS, "--config", file("rabbitmq: {replica: b}")).replica == "b"
    assert read("--broker", REDIS, LOOKOUT_RABBITMQ_REPLICA="b", LOOKOUT_REPLICA="c").replica == "c"


def test_every_option_has_a_variable(read: Read) -> None:
    given: dict[type, str] = {int: "7", float: "0.5", bool: "true"}
    base = ("--broker", REDIS, "--sentry.mode", "all", "--sentry.dsn", DSN)
    for option in OPTIONS:
        assert option.variables[0] == "LOOKOUT_" + option.name.upper().replace(".", "_").replace("-", "_")
        if option.kind in given:
            settings = read(*base, **{option.variables[0]: given[option.kind]})
            assert settings != read(*base), option.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sentry.mode", "all"), "--sentry.mode all needs --sentry.dsn, --sentry.dsn-file, or SENTRY_DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://verysecret@host"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://host/1"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "ftp://verysecret@host/1"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://verysecret@host:x/1"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://verysecret@[host/1"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://verysecret@host/1/"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "infra", "--sentry.dsn", "https://verysecret@ho st/1"), "--sentry.dsn is no DSN"),
        (("--sentry.mode", "all", "--sentry.dsn-file", "/no/such"), "--sentry.dsn-file '/no/such' cannot be read"),
        (("--sentry.mode", "all", "--sentry.dsn", DSN, "--sentry.sample-rate", "1.5"), "must not be above 1"),
        (("--sentry.mode", "all", "--sentry.dsn", DSN, "--sentry.sample-rate", "0"), "must be a number above 0"),
        (("--sentry.mode", "all", "--sentry.dsn", DSN, "--sentry.limit", "0"), "must be a number above 0"),
    ],
)
def test_wrong_sentry_options_are_named_without_the_key(read: Read, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read("--broker", REDIS, *arguments)
    assert message in str(caught.value)
    assert "verysecret" not in str(caught.value)


def test_the_dsn_comes_from_a_file_or_the_environment_and_is_not_shown(read: Read, file: Callable[[str], str]) -> None:
    for settings in (
        read("--broker", REDIS, "--sentry.mode", "all", "--sentry.dsn-file", file(f"{DSN}\n")),
        read("--broker", REDIS, "--sentry.mode", "all", SENTRY_DSN=DSN),
        read("--broker", REDIS, "--sentry.mode", "all", SENTRY_DSN=f" {DSN}\n"),
    ):
        assert settings.sentry is not None
        assert settings.sentry.dsn == DSN
        assert "key" not in repr(settings)
    assert read("--broker", REDIS, SENTRY_DSN=DSN).sentry is None


def test_sentry_lists_are_globs_of_tasks_and_of_tasks_with_exceptions(read: Read) -> None:
    given = ("--sentry.mode", "all", "--sentry.dsn", DSN, "--sentry.allow", "shop.*", "--sentry.deny", "*:Expected*")
    options = read("--broker", REDIS, *given).sentry
    assert options is not None
    assert options.wants("shop.mail", "ValueError")
    assert not options.wants("shop.mail", "ExpectedError")
    assert not options.wants("other.mail", "ValueError")


@pytest.mark.parametrize(
    "text",
    [
        """
        broker: redis://localhost/0
        web.listen-address: 127.0.0.1:1
        limit.tasks-in-flight: 5
        control.enable-events: true
        broker.use-ssl: true
        broker.transport-options: {visibility_timeout: 60}
        queue: [a, b]
        queue.latency-slo: {mail: 60, night: 3600.5}
        """,
        """
        broker: [redis://localhost/0]
        web: {listen-address: "127.0.0.1:1"}
        limit: {tasks-in-flight: 5}
        control: {enable-events: true}
        broker.use-ssl: true
        broker.transport-options: '{"visibility_timeout": 60}'
        queue: [a, b]
        queue.latency-slo: [mail=60, night=3600.5]
        web.telemetry-path:
        """,
    ],
    ids=["flat", "nested"],
)
def test_the_file_may_be_flat_or_nested(text: str, read: Read, file: Callable[[str], str]) -> None:
    settings = read("--config", file(text))
    (broker,) = settings.brokers
    assert (broker.url, broker.ssl, broker.transport_options) == (REDIS, True, {"visibility_timeout": 60})
    assert settings.listen == ListenAddress("127.0.0.1", 1)
    assert settings.telemetry_path == "/metrics"
    assert settings.cluster.limits.tasks_in_flight == 5
    assert settings.enable_events
    assert settings.cluster.queues == ("a", "b")
    assert settings.cluster.latency_slos == {"mail": 60.0, "night": 3600.5}


def test_the_file_may_be_named_by_the_environment(read: Read, file: Callable[[str], str]) -> None:
    assert read(LOOKOUT_CONFIG=file(f"broker: {REDIS}")).brokers[0].url == REDIS


def test_options_without_a_value_in_the_file_keep_their_default(file: Callable[[str], str]) -> None:
    assert read_file(file("broker:\nqueue:\nlog.level:\n")) == {}


def test_an_empty_file_sets_nothing(file: Callable[[str], str]) -> None:
    assert read_file(file("")) == {}


def test_several_brokers_have_names(read: Read) -> None:
    settings = read("--broker", "shop=redis://a/0", "--broker", "mail=amqp://u:p=w@b//?x=1")
    assert [(broker.name, broker.url) for broker in settings.brokers] == [
        ("shop", "redis://a/0"),
        ("mail", "amqp://u:p=w@b//?x=1"),
    ]


def test_an_equals_sign_in_a_password_is_no_name(read: Read) -> None:
    (broker,) = read("--broker", "redis://:a=b@host/0").brokers
    assert broker.name is None


def test_brokers_from_a_file_keep_passwords_off_the_command_line(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "brokers"
    path.write_text("# production\nshop=redis://:secret@a/0\n\n  mail=amqp://b//  \n")
    assert [broker.name for broker in read("--broker.file", str(path)).brokers] == ["shop", "mail"]


def test_settings_apply_to_every_broker(read: Read) -> None:
    settings = read(
        "--broker", "a=redis://a", "--broker", "b=redis://b",
        "--broker.use-ssl", '{"ssl_cert_reqs": "none"}',
        "--broker.event-exchange", "ev", "--broker.control-exchange", "c",
    )  # fmt: skip
    for broker in settings.brokers:
        assert (broker.ssl, broker.event_exchange, broker.control_exchange) == ({"ssl_cert_reqs": "none"}, "ev", "c")


@pytest.mark.parametrize(
    ("arguments", "named", "shown"),
    [
        ([], "--broker", "CELERY_BROKER_URL"),
        (["--broker", "localhost:6379"], "--broker", "localhost:6379"),
        (["--broker", "REDIS://host"], "--broker", "REDIS://host"),
        (["--broker", "a b=redis://host"], "--broker", "a b"),
        (["--broker", "redis://a", "--broker", "redis://b"], "--broker", "NAME=URL"),
        (["--broker", "x=redis://a", "--broker", "x=redis://b"], "--broker", "x"),
        (["--broker", "x=redis://a", "--broker", "redis://b"], "--broker", "NAME=URL"),
        (["--broker.file", "/no/such/file"], "--broker.file", "/no/such/file"),
        (["--broker", REDIS, "--broker.transport-options", "[]"], "--broker.transport-options", "JSON object"),
        (["--broker", REDIS, "--broker.transport-options", "{a}"], "--broker.transport-options", "JSON"),
        (["--broker", REDIS, "--broker.use-ssl", "5"], "--broker.use-ssl", "true"),
        (["--broker", REDIS, "--web.listen-address", "9808"], "--web.listen-address", "'9808'"),
        (["--broker", REDIS, "--web.listen-address", "host:70000"], "--web.listen-address", "'host:70000'"),
        (["--broker", REDIS, "--web.telemetry-path", "metrics"], "--web.telemetry-path", "'metrics'"),
        (["--broker", REDIS, "--web.telemetry-path", "/"], "--web.telemetry-path", "'/'"),
        (["--broker", REDIS, "--limit.series", "0"], "--limit.series", "0"),
        (["--broker", REDIS, "--probe.interval", "-1"], "--probe.interval", "-1"),
        (["--broker", REDIS, "--probe.interval", "nan"], "--probe.interval", "nan"),
        (["--broker", REDIS, "--queue.latency-slo", "mail"], "--queue.latency-slo", "'mail'"),
        (["--broker", REDIS, "--queue.latency-slo", "=5"], "--queue.latency-slo", "'=5'"),
        (["--broker", REDIS, "--queue.latency-slo", "mail=0"], "--queue.latency-slo", "'mail=0'"),
        (["--broker", REDIS, "--queue.latency-slo", "mail=inf"], "--queue.latency-slo", "'mail=inf'"),
        (["--broker", REDIS, "--replica", "a/b"], "--replica", "'a/b'"),
    ],
)
def test_errors_name_the_option_and_the_value(arguments: list[str], named: str, shown: str, read: Read) -> None:
    with pytest.raises(SettingsError) as raised:
        read(*arguments)
    message = str(raised.value)
    assert named in message
    assert shown in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--limit.series", "lots"], "--limit.series"),
        (["--log.level", "loud"], "--log.level"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_click_refuses_what_it_can_by_itself(arguments: list[str], named: str, read: Read) -> None:
    with pytest.raises(click.UsageError) as raised:
        read("--broker", REDIS, *arguments)
    assert named in raised.value.format_message()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("broker: [", "cannot be read"),
        ("- broker", "mapping"),
        ("brokers: redis://a", "'brokers'"),
        ("web: {port: 1}", "'web.port'"),
    ],
)
def test_errors_of_the_file_name_it(text: str, shown: str, file: Callable[[str], str]) -> None:
    path = file(text)
    with pytest.raises(SettingsError) as raised:
        read_file(path)
    assert path in str(raised.value)
    assert shown in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("sentry.deny: [shop.mail: OutOfStock]", "--sentry.deny"),
        ("sentry.deny: {shop.mail: OutOfStock}", "--sentry.deny"),
        ("sentry: {allow: {tasks: [shop.mail]}}", "--sentry.allow"),
        ("sentry.allow: [[shop.mail]]", "--sentry.allow"),
        ("label.task-deny: [{a: b}]", "--label.task-deny"),
        ("queue.latency-slo: {mail: {seconds: 60}}", "--queue.latency-slo"),
        ("broker: [redis://:hunter2@host: x]", "--broker"),
    ],
)
def test_what_is_no_text_in_a_list_of_the_file_is_refused_and_not_quoted(
    text: str, option: str, file: Callable[[str], str]
) -> None:
    """It would be a glob that no task matches."""
    with pytest.raises(SettingsError, match=f"{option} must be a list of texts .* needs quotes") as raised:
        read_file(file(text))
    assert "hunter2" not in str(raised.value)
    assert "OutOfStock" not in str(raised.value)


def test_off_in_the_file_needs_no_quotes(read: Read, file: Callable[[str], str]) -> None:
    """To YAML it is a word for false."""
    assert read("--broker", REDIS, "--config", file(f"sentry: {{mode: off, dsn: {DSN}}}")).sentry is None
    with pytest.raises(click.UsageError, match="'true' is not one of"):
        read("--broker", REDIS, "--config", file("sentry.mode: on"))


ODD_VALUES = (
    "2001-99-99", "2001-12-14", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!set {a}", "!!omap [a]",
    "[1, 2]", "[[[]]]", "[null]", "{a: b}", "{[a]: 2}", "&a [*a]", "&a {b: *a}", "{<<: 3}", "null", "true", ".nan",
    ".inf", "-5", "0", "''", "0x", "1:30", '"\\ud800"', '"\\0"', "9" * 5000, "'" + "9" * 5000 + "'",
    "!!python/object:os.system x", "[" * 1000,
)  # fmt: skip


@pytest.mark.parametrize(
    "option",
    ["broker", "broker.file", "broker.transport-options", "control.enable-events", "control.interval", "limit.series",
     "log.level", "queue.latency-slo", "web.telemetry-path"],
)  # fmt: skip
def test_any_value_in_the_file_is_taken_or_refused_in_words(
    option: str, read: Read, file: Callable[[str], str]
) -> None:
    for value in ODD_VALUES:
        path = file(f"{option}: {value}\n")
        with contextlib.suppress(SettingsError, click.ClickException):
            read("--config", path, "--broker", REDIS)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="/no/such/file"):
        read_file("/no/such/file")


@pytest.mark.parametrize(
    "text",
    ["broker: redis://:hunter2@host: x: y", "broker: 'redis://:hunter2@host", "broker: [redis://:hunter2@h\n  - x"],
)
def test_errors_of_the_file_do_not_quote_it(text: str, file: Callable[[str], str]) -> None:
    with pytest.raises(SettingsError) as raised:
        read_file(file(text))
    assert "hunter2" not in str(raised.value)
    assert "line" in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--broker", "user:hunter2@host"],
        ["--broker", "redis:/:hunter2@host"],
        ["--broker", "REDIS://:hunter2@host"],
        ["--broker", "amqp:/user:hunter2=3@host"],
        ["--broker", "redis://:hunter2@a", "--broker", "redis://:hunter2@b"],
        ["--broker", REDIS, "--broker.transport-options", '{"password": "hunter2"'],
        ["--broker", REDIS, "--broker.use-ssl", '"hunter2"'],
    ],
)
def test_errors_never_show_a_secret(arguments: list[str], read: Read) -> None:
    with pytest.raises(SettingsError) as raised:
        read(*arguments)
    assert "hunter2" not in str(raised.value)


def test_settings_do_not_show_secrets(read: Read) -> None:
    options = json.dumps({"sentinel_kwargs": {"password": "hunter2"}})
    settings = read(
        "--broker", "redis://:hunter2@host", "--broker.transport-options", options,
        "--broker.use-ssl", '{"ssl_password": "hunter2"}', "--rabbitmq.management-url", "http://u:hunter2@h",
    )  # fmt: skip
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9808", "", 9808),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:80", "::1", 80),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    address = ListenAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


def test_names_of_options_are_those_of_the_contract() -> None:
    names = {option.name for option in OPTIONS}
    assert {
        "broker", "web.listen-address", "web.telemetry-path", "log.level", "log.format", "rabbitmq.management-url",
        "control.enable-events",
    } <= names  # fmt: skip


def test_spans_are_only_sent_where_our_own_option_says(read: Read) -> None:
    meant_for_the_application = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert read("--broker", REDIS, "--otlp.header", "a=b", **meant_for_the_application).otlp is None
    options = read("--broker", REDIS, LOOKOUT_OTLP_ENDPOINT="http://own", LOOKOUT_OTLP_HEADER="a=b%20c d=e").otlp
    assert options is not None
    assert (options.endpoint, options.service_name) == ("http://own/v1/traces", "celery")
    assert options.headers == {"a": "b c", "d": "e"}


def test_headers_of_spans_from_the_file(read: Read, file: Callable[[str], str]) -> None:
    path = file("otlp: {endpoint: 'http://own', service-name: shop}\notlp.header:\n  authorization: Bearer secret\n")
    settings = read("--broker", REDIS, "--config", path)
    assert settings.otlp is not None
    assert settings.otlp.headers == {"authorization": "Bearer secret"}
    assert settings.otlp.service_name == "shop"
    assert "secret" not in repr(settings)


def test_rules_for_labels_come_from_repeated_options_and_from_lists_in_the_file(
    read: Read, file: Callable[[str], str]
) -> None:
    text = "label: {task-deny: [a.*, b], queue-rename: ['user-\\d+=user'], worker-rename: {'(.+)@.*': $1}}"
    labels = read("--broker", REDIS, "--config", file(text), "--label.task-allow", "x", "--label.task-allow", "y")
    rules = labels.cluster.labels
    assert (rules.task.allow, rules.task.deny) == (("x", "y"), ("a.*", "b"))
    assert rules.queue.shown("user-7") == "user"
    assert rules.worker.shown("web@host") == "web"
    with pytest.raises(SettingsError, match=r"--label\.queue-rename 'x' is not PATTERN=REPLACEMENT"):
        read("--broker", REDIS, "--label.queue-rename", "x")
