"""The web configuration file: what is understood, what is refused and how, and that promtool sees it alike."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import bcrypt
import pytest

from celery_lookout.errors import SettingsError
from celery_lookout.web.config import WebConfig, read_web_config
from celery_lookout.web.tls import _KEYS
from tests.servers.celery_versions import ROOT

#: Of "geheim", at the lowest cost.
HASH = "$2b$04$CCCCCCCCCCCCCCCCCCCCC.NEq9F9tqK97BkYIjly3sn0SSnbQm1jq"
#: What must be in no message.
SECRETS = ("geheim", HASH[10:], "PRIVATE KEY")

TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
CLIENTS = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"

GOOD = {
    "empty": "",
    "tls": TLS,
    "tls left empty": "tls_server_config:\n",
    "tls without keys": "tls_server_config: {}\n",
    "client certificates": CLIENTS,
    "client certificates if given": CLIENTS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"),
    "no client certificates": f"{TLS}  client_auth_type: NoClientCert\n",
    "versions": f"{TLS}  min_version: TLS12\n  max_version: TLS12\n",
    "one cipher": f"{TLS}  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n",
    "ciphers of both versions": f"{TLS}  cipher_suites:\n"
    "  - TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256\n  - TLS_AES_128_GCM_SHA256\n",
    "the client's cipher": f"{TLS}  prefer_server_cipher_suites: false\n",
    "one curve": f"{TLS}  curve_preferences: [CurveP384]\n",
    "http2": "http_server_config:\n  http2: true\n",
    "no http2": "http_server_config:\n  http2: off\n",
    "headers": "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    X-Content-Type-Options: nosniff\n"
    "    Strict-Transport-Security: max-age=31536000\n    X-XSS-Protection: 0\n    Content-Security-Policy: ''\n",
    "users": f"basic_auth_users:\n  prometheus: {HASH}\n  Jürgen: {HASH.replace('$2b$', '$2y$')}\n  1: {HASH}\n",
    "users left empty": "basic_auth_users:\n",
    "everything": f"{CLIENTS}http_server_config:\n  http2: false\nbasic_auth_users:\n  a: {HASH}\n",
}

#: Bad for both, with what our message names.
BAD = {
    "not YAML": ("basic_auth_users: {a: geheim\n", "not YAML in line 2"),
    "not a mapping": ("- geheim\n", "must be a mapping"),
    "unknown key": ("tls_config:\n  cert_file: server.pem\n", "line 1: tls_config is not known"),
    "unknown key of TLS": (f"{TLS}  certfile: a\n", "line 4: tls_server_config.certfile is not known"),
    "unknown key of HTTP": ("http_server_config:\n  http3: true\n", "http_server_config.http3 is not known"),
    "key twice": ("http_server_config:\n  http2: true\n  http2: false\n", "line 3: http_server_config.http2 is there"),
    "text for a mapping": ("basic_auth_users: geheim\n", "basic_auth_users must be a mapping"),
    "mapping for a text": (f"{TLS}  min_version: {{a: b}}\n", "tls_server_config.min_version must be a text"),
    "text for a list": (f"{TLS}  cipher_suites: TLS_AES_128_GCM_SHA256 x\n", "cipher_suites"),
    "text for a truth": ("http_server_config:\n  http2: 'no'\n", "http_server_config.http2 must be true or false"),
    "no certificate": ("tls_server_config:\n  key_file: server.key\n", "tls_server_config needs cert_file"),
    "no key": ("tls_server_config:\n  cert_file: server.pem\n", "tls_server_config needs key_file"),
    "client authentication alone": ("tls_server_config:\n  client_auth_type: NoClientCert\n", "needs cert_file"),
    "missing file": (TLS.replace("server.pem", "none.pem"), "none.pem' cannot be read: No such file"),
    "folder for a file": (TLS.replace("server.pem", "."), "cannot be read: Is a directory"),
    "key for a certificate": (TLS.replace("server.pem", "server.key"), "cert_file has no certificate"),
    "certificate for a key": (TLS.replace("server.key", "ca.pem"), "key_file has no private key"),
    "key of another": (TLS.replace("server.key", "client.key"), "key_file does not belong to the certificate"),
    "unknown version": (f"{TLS}  min_version: TLS14\n", "min_version is 'TLS14': write TLS12 or TLS13"),
    "unknown cipher": (f"{TLS}  cipher_suites: [ROT13]\n", "cipher_suites has 'ROT13': known are TLS_ECDHE"),
    "unknown curve": (f"{TLS}  curve_preferences: [P1]\n", "curve_preferences has 'P1': known are CurveP256"),
    "unknown client authentication": (f"{TLS}  client_auth_type: Yes\n", "client_auth_type is 'Yes': write NoClient"),
    "authority without authentication": (f"{TLS}  client_ca_file: ca.pem\n", "client_ca_file has no effect"),
    "header that may not be set": ("http_server_config:\n  headers:\n    Server: x\n", "headers.Server is not known"),
    "value that a header may not have": (
        "http_server_config:\n  headers:\n    X-Frame-Options: DENY\n", "X-Frame-Options must be deny or sameorigin"
    ),
    "password for a hash": ("basic_auth_users:\n  a: geheim\n", "basic_auth_users.a must be a bcrypt hash: make one"),
    "low cost": (f"basic_auth_users:\n  a: {HASH.replace('$04', '$03')}\n", "a bcrypt hash of cost 03"),
}  # fmt: skip

#: Fine for Prometheus; here they would mean less than they say, so they are refused.
BAD_HERE = {
    "version that OpenSSL refuses": (f"{TLS}  min_version: TLS10\n", "min_version is TLS10, which OpenSSL 3 refuses"),
    "no version left": (f"{TLS}  min_version: TLS13\n  max_version: TLS12\n", "max_version is lower than min_version"),
    "certificate not verified": (f"{TLS}  client_auth_type: RequireAnyClientCert\n", "does not verify"),
    "certificate asked for": (f"{TLS}  client_auth_type: RequestClientCert\n", "does not verify"),
    "certificate of anybody": (f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n", "needs client_ca_file"),
    "several curves": (f"{TLS}  curve_preferences: [CurveP256, X25519]\n", "can set one only"),
    "no cipher for TLS 1.2": (f"{TLS}  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", "has none for TLS 1.2"),
    "authority that is none": (CLIENTS.replace("ca.pem", "server.key"), "client_ca_file has no certificate"),
    "torn hash": (f"basic_auth_users:\n  a: {HASH[:-1]}\n", "must be a bcrypt hash"),
    "cost of hours": (f"basic_auth_users:\n  a: {HASH.replace('$04', '$24')}\n", "cost 24: use 4 to 16"),
    "name that cannot be sent": (f"basic_auth_users:\n  'a:b': {HASH}\n", "has a colon"),
    "line break in a header": (
        'http_server_config:\n  headers:\n    Content-Security-Policy: "a\\nb"\n', "has a line break"
    ),
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "web.yml"
    path.write_text(text, "utf-8")
    return path


def read(folder: Path, text: str) -> WebConfig:
    return read_web_config(write(folder, text))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(folder, text)
    return str(caught.value)


def promtool_accepts(promtool: Path, path: Path) -> bool:
    checked = subprocess.run([promtool, "check", "web-config", path], capture_output=True, timeout=30, cwd="/")
    return checked.returncode == 0


@pytest.mark.prometheus
@pytest.mark.parametrize("name", GOOD)
def test_what_is_accepted_is_accepted_by_promtool(name: str, folder: Path, promtool: Path) -> None:
    read(folder, GOOD[name])
    assert promtool_accepts(promtool, folder / "web.yml")


@pytest.mark.prometheus
@pytest.mark.parametrize("name", BAD)
def test_what_promtool_refuses_is_refused_with_a_reason(name: str, folder: Path, promtool: Path) -> None:
    text, reason = BAD[name]
    message = refusal(folder, text)
    assert reason in message
    assert message.startswith(f"--web.config.file '{folder / 'web.yml'}'")
    assert not promtool_accepts(promtool, folder / "web.yml")


@pytest.mark.parametrize("name", BAD_HERE)
def test_what_cannot_be_done_as_asked_is_refused(name: str, folder: Path) -> None:
    text, reason = BAD_HERE[name]
    assert reason in refusal(folder, text)


@pytest.mark.parametrize("name", [*BAD, *BAD_HERE])
def test_no_refusal_tells_a_secret(name: str, folder: Path) -> None:
    message = refusal(folder, (BAD | BAD_HERE)[name][0])
    assert [secret for secret in SECRETS if secret in message] == []


def test_a_refusal_is_not_followed_by_an_error_that_quotes_the_file(folder: Path) -> None:
    path = folder / "web.yml"
    path.write_bytes(b"basic_auth_users: {geheim: \xff}\n")
    with pytest.raises(SettingsError, match="not UTF-8") as caught:
        read_web_config(path)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yml' cannot be read: No such file"):
        read_web_config(tmp_path / "none.yml")


def test_nothing_asked_for_is_nothing_protected(folder: Path) -> None:
    config = read(folder, "")
    assert (config.tls, config.headers, config.users) == (None, {}, {})


def test_users_and_headers_are_read(folder: Path) -> None:
    assert read(folder, GOOD["users"]).users["Jürgen".encode()] == HASH.replace("$2b$", "$2y$").encode()
    assert read(folder, GOOD["users"]).users[b"1"] == HASH.encode()
    assert read(folder, GOOD["headers"]).headers == {
        "X-Frame-Options": "deny",
        "X-Content-Type-Options": "nosniff",
        "Strict-Transport-Security": "max-age=31536000",
        "X-XSS-Protection": "0",
    }


def test_what_is_shown_of_a_configuration_has_no_hash(folder: Path) -> None:
    assert HASH not in repr(read(folder, GOOD["everything"]))


def test_tls_is_set_as_asked(folder: Path) -> None:
    def context(text: str) -> ssl.SSLContext:
        tls = read(folder, text).tls
        assert tls is not None
        return tls.context

    plain = context(TLS)
    assert (plain.minimum_version, plain.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert plain.verify_mode is ssl.CERT_NONE
    assert plain.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert not context(GOOD["the client's cipher"]).options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context(GOOD["versions"]).maximum_version is ssl.TLSVersion.TLSv1_2
    assert context(GOOD["client certificates"]).verify_mode is ssl.CERT_REQUIRED
    assert context(GOOD["client certificates if given"]).verify_mode is ssl.CERT_OPTIONAL
    assert {
        cipher["name"] for cipher in context(GOOD["one cipher"]).get_ciphers() if cipher["protocol"] != "TLSv1.3"
    } == {"ECDHE-ECDSA-AES256-GCM-SHA384"}


def test_certificates_may_stand_in_the_file(folder: Path) -> None:
    def indented(name: str) -> str:
        return "".join(f"    {line}\n" for line in (folder / name).read_text().splitlines())

    text = (
        f"tls_server_config:\n  cert: |\n{indented('server.pem')}  key: |\n{indented('server.key')}"
        f"  client_ca: |\n{indented('ca.pem')}  client_auth_type: RequireAndVerifyClientCert\n"
        "  client_allowed_sans: [scraper.example]\n"
    )
    tls = read(folder, text).tls
    assert tls is not None
    assert tls.context.get_ca_certs()
    assert tls.allowed_sans == frozenset({"scraper.example"})
    assert "tls_server_config.key and key_file are both given" in refusal(folder, f"{text}  key_file: server.key\n")
    wrong = text.replace(indented("server.key"), indented("client.key"))
    assert "tls_server_config.key does not belong" in refusal(folder, wrong)


def test_an_encrypted_key_is_refused(folder: Path) -> None:
    # ssl would ask for the passphrase on the terminal.
    subprocess.run(
        ["openssl", "pkey", "-in", "server.key", "-aes128", "-passout", "pass:geheim", "-out", "locked.key"],
        cwd=folder,
        check=True,
    )
    assert "key_file is encrypted" in refusal(folder, TLS.replace("server.key", "locked.key"))


@pytest.mark.parametrize("names", ["[]", "[scraper.example]"])
def test_names_without_client_certificates_are_refused(names: str, folder: Path) -> None:
    assert "client_allowed_sans has no effect" in refusal(folder, f"{TLS}  client_allowed_sans: {names}\n")
    if names == "[]":
        assert "client_allowed_sans names nobody" in refusal(folder, f"{CLIENTS}  client_allowed_sans: {names}\n")


def test_a_limit_on_the_rate_is_refused_by_its_name(folder: Path) -> None:
    assert "rate_limit is not built here" in refusal(folder, "rate_limit:\n  interval: 1s\n  burst: 2\n")


def test_the_example_of_the_documentation_is_right(folder: Path) -> None:
    page = (ROOT / "docs" / "web.md").read_text("utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    config = read(folder, example.replace("tls.crt", "server.pem").replace("tls.key", "server.key"))
    assert bcrypt.checkpw(b"secret", config.users[b"prometheus"])


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs" / "web.md").read_text("utf-8")
    assert [key for key in _KEYS if f"`{key}`" not in page and f"`tls_server_config.{key}`" not in page] == []
