"""Who is let in, over a real socket: users, client certificates, headers; and changes of the file while it runs."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bcrypt
import pytest

from celery_lookout.web import reload
from tests.servers.certificates import Authority
from tests.web.serving import Serving, eventually, serving
from tests.web.test_config import CLIENTS, HASH, TLS, write

USERS = f"basic_auth_users:\n  ann: {HASH}\n"
CIPHER = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
PATHS = ("/metrics", "/", "/-/healthy", "/-/ready", "/api/v1/status", "/no-such-page")
RELOAD = "celery_exporter_web_config_reload_success"


@pytest.fixture(autouse=True)
def _quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "CHECK_SECONDS", 0.02)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged, at the end searched for secrets."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    text = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert [secret for secret in ("geheim", HASH[10:], "PRIVATE KEY", "hunter2") if secret in text] == []


def replace(path: Path, content: str | bytes) -> None:
    """Give the file at *path* new content, as an editor or Kubernetes does: in one step."""
    new = path.with_name("new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.replace(path)


async def test_without_a_file_everybody_is_let_in() -> None:
    async with serving() as here:
        assert {(await here.get(path)).status for path in PATHS} == {200, 404}


async def test_every_path_asks_for_the_password(folder: Path) -> None:
    async with serving(write(folder, USERS)) as here:
        for path in PATHS:
            reply = await here.get(path)
            assert (reply.status, reply.body) == (401, b"Unauthorized\n"), path
            assert reply.headers["WWW-Authenticate"] == 'Basic realm="celery-lookout"'
        assert here.refused("credentials") == len(PATHS)
        assert {(await here.get(path, user="ann:geheim")).status for path in PATHS} == {200, 404}
        assert here.refused("credentials") == len(PATHS)


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic YW5u",  # ann, without a colon
        "Bearer YW5uOmdlaGVpbQ==",
        "Basic YW5uOmdlaGVpbQ",  # torn
        "Basic " + "A" * 4000,
        "YW5uOmdlaGVpbQ==",
    ],
)
async def test_what_is_no_password_is_refused(folder: Path, header: str) -> None:
    async with serving(write(folder, USERS)) as here:
        assert (await here.get(headers=f"Authorization: {header}\r\n")).status == 401


async def test_a_colon_in_the_password_and_any_case_of_the_scheme(folder: Path) -> None:
    secret = bcrypt.hashpw("a:ü".encode(), bcrypt.gensalt(4)).decode()
    async with serving(write(folder, f"basic_auth_users:\n  Jürgen: {secret}\n")) as here:
        assert (await here.get(user="Jürgen:a:ü")).status == 200
        assert (await here.get(headers="Authorization: bAsIc SsO8cmdlbjphOsO8\r\n")).status == 200


async def test_too_many_logins_at_once_are_sent_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(write(folder, USERS)) as here:
        assert (await here.get(user="ann:geheim")).status == 200
        monkeypatch.setattr("celery_lookout.web.users.MOST_WAITING", 0)
        reply = await here.get(user="ann:wrong")
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert here.refused("busy") == 1
        assert (await here.get(user="ann:geheim")).status == 200, "who is known need not wait"


async def test_headers_are_on_every_answer(folder: Path) -> None:
    headers = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    async with serving(write(folder, USERS + headers)) as here:
        for user in ("", "ann:geheim"):
            for path in PATHS:
                assert (await here.get(path, user=user)).headers["X-Frame-Options"] == "deny", (path, user)


async def test_tls_and_users_together(folder: Path, authority: Authority) -> None:
    async with serving(write(folder, TLS + USERS), authority.client_context()) as here:
        assert (await here.get()).status == 401
        assert (await here.get(user="ann:geheim")).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await here.get(context=ssl.create_default_context())
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"celery_" not in await reader.read()
        writer.close()
        await eventually(lambda: here.refused("handshake") >= 1)


def was_refused(here: Serving, reason: str, times: float) -> bool:
    return here.refused(reason) == times


async def test_a_client_needs_a_certificate_of_the_authority(
    folder: Path, tmp_path: Path, authority: Authority
) -> None:
    stranger = Authority(tmp_path / "stranger")
    stranger.issue("client", "scraper.example")
    forged = authority.client_context()
    forged.load_cert_chain(stranger.folder / "client.pem", stranger.folder / "client.key")
    async with serving(write(folder, CLIENTS)) as here:
        assert (await here.get(context=authority.client_context("client"))).status == 200
        for context in (authority.client_context(), forged):
            expected = here.refused("handshake") + 1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await here.get(context=context)
            await eventually(partial(was_refused, here, "handshake", expected))


async def test_a_client_may_come_without_certificate_where_that_is_said(folder: Path, authority: Authority) -> None:
    text = CLIENTS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    async with serving(write(folder, f"{text}  client_allowed_sans: [nobody]\n")) as here:
        assert (await here.get(context=authority.client_context())).status == 200
        assert (await here.get(context=authority.client_context("client"))).status == 403


@pytest.mark.parametrize(
    ("allowed", "status"),
    [("scraper.example", 200), ("2001:db8::7", 200), ("other', 'scraper.example", 200), ("example", 403)],
)
async def test_a_client_needs_an_allowed_name(folder: Path, authority: Authority, allowed: str, status: int) -> None:
    async with serving(write(folder, f"{CLIENTS}  client_allowed_sans: ['{allowed}']\n")) as here:
        reply = await here.get(context=authority.client_context("client"))
        assert reply.status == status
        assert here.refused("certificate") == (status == 403)
        if status == 403:
            assert reply.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("lines", "cipher"),
    [
        ("max_version: TLS12", ""),
        (f"max_version: TLS12\n  cipher_suites: [{CIPHER}]", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("curve_preferences: [CurveP384]", ""),
    ],
)  # fmt: skip
async def test_handshakes_are_as_asked(folder: Path, authority: Authority, lines: str, cipher: str) -> None:
    async with serving(write(folder, f"{TLS}  {lines}\n")) as here:
        context = authority.client_context()
        assert (await here.get(context=context)).status == 200
        _, writer = await here.connect(context)
        assert not cipher or writer.get_extra_info("cipher")[0] == cipher
        writer.transport.abort()
        if "TLS12" in lines:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            context.set_ecdh_curve("X25519")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await here.get(context=context)


async def test_users_change(folder: Path, logged: pytest.LogCaptureFixture) -> None:
    path = write(folder, USERS)
    async with serving(path) as here:
        assert (await here.get(user="ann:geheim")).status == 200
        replace(path, USERS.replace("ann", "bob"))
        await eventually(lambda: "reloaded" in logged.text)
        assert (await here.get(user="ann:geheim")).status == 401
        assert (await here.get(user="bob:geheim")).status == 200
        assert here.value(RELOAD) == 1


async def test_a_user_is_out_on_an_open_connection_too(folder: Path, logged: pytest.LogCaptureFixture) -> None:
    path = write(folder, USERS)
    async with serving(path) as here:
        request = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YW5uOmdlaGVpbQ==\r\n\r\n"
        reader, writer = await here.connect()
        writer.write(request)
        assert b"200 OK" in await reader.readuntil(b"is healthy\n")
        replace(path, USERS.replace("ann", "bob"))
        await eventually(lambda: "reloaded" in logged.text)
        writer.write(request)
        assert b"401 Unauthorized" in await reader.readuntil(b"Unauthorized\n")
        writer.transport.abort()


async def test_a_certificate_is_renewed(folder: Path, authority: Authority, logged: pytest.LogCaptureFixture) -> None:
    async with serving(write(folder, TLS), authority.client_context()) as here:

        async def serial() -> str:
            _, writer = await here.connect()
            found: str = writer.get_extra_info("peercert")["serialNumber"]
            writer.transport.abort()
            return found

        before = await serial()
        assert await serial() == before
        fresh = Authority(folder / "fresh")
        fresh.issue("server", "localhost")
        replace(folder / "server.key", (fresh.folder / "server.key").read_bytes())
        await eventually(lambda: here.value(RELOAD) == 0)  # it does not belong to the certificate
        assert await serial() == before
        replace(folder / "server.pem", (fresh.folder / "server.pem").read_bytes())
        await eventually(lambda: here.value(RELOAD) == 1)
        here.context = fresh.client_context()
        assert await serial() != before


async def test_an_authority_is_changed(folder: Path, authority: Authority, logged: pytest.LogCaptureFixture) -> None:
    async with serving(write(folder, CLIENTS)) as here:
        client = authority.client_context("client")
        assert (await here.get(context=client)).status == 200
        replace(folder / "ca.pem", Authority(folder / "fresh").path.read_bytes())
        await eventually(lambda: "reloaded" in logged.text)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await here.get(context=client)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (f"{USERS}  bob: geheim\n", "basic_auth_users.bob must be a bcrypt hash"),
        ("basic_auth_users: {", "not YAML"),
        (TLS + USERS, "switches TLS on: restart for that"),
        (None, "cannot be read: No such file"),
    ],
)
async def test_a_broken_file_changes_nothing_and_is_said_once(
    folder: Path, broken: str | None, reason: str, logged: pytest.LogCaptureFixture
) -> None:
    path = write(folder, USERS)
    async with serving(path) as here:
        if broken is None:
            path.unlink()
        else:
            replace(path, broken)
        await eventually(lambda: here.value(RELOAD) == 0)
        assert (await here.get()).status == 401
        assert (await here.get(user="ann:geheim")).status == 200
        await asyncio.sleep(0.1)  # some more looks
        [record] = [record for record in logged.records if record.levelno == logging.ERROR]
        assert reason in vars(record)["error"]
        replace(path, USERS.replace("ann", "bob"))
        await eventually(lambda: here.value(RELOAD) == 1)
        assert (await here.get(user="bob:geheim")).status == 200


async def test_a_file_that_comes_late_is_taken_in(folder: Path, authority: Authority) -> None:
    path = write(folder, TLS)
    async with serving(path, authority.client_context()) as here:
        replace(path, TLS.replace("server.", "late.") + USERS)
        await eventually(lambda: here.value(RELOAD) == 0)
        for kind in ("pem", "key"):
            replace(folder / f"late.{kind}", (folder / f"server.{kind}").read_bytes())
        await eventually(lambda: here.value(RELOAD) == 1)
        assert (await here.get(user="ann:geheim")).status == 200


async def test_a_file_that_is_moved_away_and_back_is_whole_again(folder: Path) -> None:
    # Nothing about it has changed, so that only the error tells that there is something to look at.
    path = write(folder, USERS)
    async with serving(path) as here:
        path.rename(folder / "away")
        await eventually(lambda: here.value(RELOAD) == 0)
        (folder / "away").rename(path)
        await eventually(lambda: here.value(RELOAD) == 1)


async def test_a_disk_that_hangs_holds_up_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, go_on = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def hang(_file: object) -> None:
        looking.set()
        in_time.append(go_on.wait(10))

    monkeypatch.setattr(reload.WebConfigFile, "_look", hang)
    async with serving(write(folder, USERS)) as here:
        assert await asyncio.to_thread(looking.wait, 30)
        assert (await here.get(user="ann:geheim")).status == 200
        go_on.set()
        await eventually(lambda: in_time)
        assert in_time[0]


async def test_tls_is_not_switched_off(folder: Path, authority: Authority, logged: pytest.LogCaptureFixture) -> None:
    path = write(folder, TLS)
    async with serving(path, authority.client_context()) as here:
        replace(path, USERS)
        await eventually(lambda: here.value(RELOAD) == 0)
        assert (await here.get()).status == 200
        assert "switches TLS off" in vars(logged.records[-1])["error"]


async def test_a_secret_of_kubernetes_is_seen_to_change(folder: Path, logged: pytest.LogCaptureFixture) -> None:
    # The file is a link into a folder that is a link, which is what changes.
    for version, name in (("v1", "ann"), ("v2", "bob")):
        (folder / version).mkdir()
        write(folder / version, USERS.replace("ann", name))
        os.utime(folder / version / "web.yml", (1, 1))
    (folder / "..data").symlink_to("v1")
    (folder / "web.yml").symlink_to("..data/web.yml")
    async with serving(folder / "web.yml") as here:
        assert (await here.get(user="ann:geheim")).status == 200
        (folder / "..new").symlink_to("v2")
        (folder / "..new").replace(folder / "..data")
        await eventually(lambda: "reloaded" in logged.text)
        assert (await here.get(user="bob:geheim")).status == 200


async def test_malformed_requests_are_counted_and_not_quoted(folder: Path, logged: pytest.LogCaptureFixture) -> None:
    async with serving(write(folder, USERS)) as here:
        assert (await here.get(headers="Authorization: hunter2\x00\r\n")).status == 400
        assert (await here.get(headers=f"Authorization: hunter2{'x' * 9000}\r\n")).status == 400
        assert here.refused("malformed") == 2


def test_bcrypt_is_loaded_with_the_first_password(folder: Path) -> None:
    # In a process of its own, since this one has loaded it.
    code = (
        "import asyncio, sys, celery_lookout.app\n"
        "from pathlib import Path\n"
        "from celery_lookout.web.guard import Passwords, WebConfigFile, bcrypt_matches\n"
        "users = WebConfigFile(Path('web.yml')).current.users\n"
        "print('bcrypt' in sys.modules)\n"
        "print(asyncio.run(Passwords(bcrypt_matches).allow(users, b'ann', b'geheim')), 'bcrypt' in sys.modules)\n"
    )
    write(folder, USERS)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert ran.stdout == "False\nTrue True\n"
