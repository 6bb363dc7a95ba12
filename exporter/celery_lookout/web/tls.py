"""
From ``tls_server_config`` of the web configuration file to a context for handshakes.

The file's words are Go's; what Python's ssl or OpenSSL 3 cannot do as asked is an error, never something similar.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from .files import Files
from .strict import Section

_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS: Final = ("TLS10", "TLS11")

_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
#: They take certificates without verifying them; OpenSSL, as Python drives it, verifies each that it asks for.
_UNVERIFIED: Final = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")

#: Go's names of the suites of TLS 1.2 that its ``CipherSuites`` returns, and OpenSSL's.
_CIPHERS: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
#: Always on with TLS 1.3, in Go and here: naming them changes nothing.
_CIPHERS_13: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")

_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

_KEYS: Final = (
    "cert_file", "key_file", "cert", "key", "client_auth_type", "client_ca_file", "client_ca", "client_allowed_sans",
    "min_version", "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tls:
    """What ``tls_server_config`` asks for."""

    context: ssl.SSLContext
    #: Names of which a client's certificate must have one; None when any will do.
    allowed_sans: frozenset[str] | None


def read_tls(section: Section, folder: Path, files: Files) -> Tls | None:
    """
    Make a context of ``tls_server_config``; None when it is empty, which means no TLS.

    Relative paths in it are relative to *folder*; *files* reads them. Raises SettingsError.
    """
    section.only(*_KEYS)
    if not any(key in section for key in _KEYS):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(context, section)
    _set_ciphers(context, section)
    _set_curve(context, section)
    certificate = _pem(section, "cert", folder, files)
    key = _pem(section, "key", folder, files)
    if not certificate or not key:
        missing = "key" if certificate else "cert"
        raise section.wrong("", f"needs {missing}_file, or {missing} with the PEM text itself")
    _load(context, section, certificate, key)
    allowed_sans = _set_clients(context, section, _pem(section, "client_ca", folder, files))
    return Tls(context, allowed_sans)


def _pem(section: Section, key: str, folder: Path, files: Files) -> str:
    """Return the PEM text at *key*, or that of the file at *key*_file, read with *files*."""
    text, name = section.text(key), section.text(f"{key}_file")
    if text and name:
        raise section.wrong(key, f"and {key}_file are both given: leave only one")
    if not name:
        return text
    path = folder / name
    try:
        return files.read(path).decode("utf-8", "replace")  # people comment their PEM files in any language
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise section.wrong(f"{key}_file", f"{str(path)!r} cannot be read: {reason}") from error


def _load(context: ssl.SSLContext, section: Section, certificate: str, key: str) -> None:
    if "-----BEGIN CERTIFICATE-----" not in certificate:
        raise section.wrong(_named(section, "cert"), "has no certificate in PEM form")
    if "PRIVATE KEY-----" not in key:
        raise section.wrong(_named(section, "key"), "has no private key in PEM form")
    if "ENCRYPTED PRIVATE KEY-----" in key or "4,ENCRYPTED" in key:
        raise section.wrong(_named(section, "key"), "is encrypted: decrypt it, for there is nobody to ask")
    try:
        with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
            context.load_cert_chain(certificate_path, key_path, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise section.wrong(_named(section, "key"), "does not belong to the certificate") from error
        raise section.wrong(
            _named(section, "cert"), f"and its key cannot be used: OpenSSL says {error.reason or 'they are not PEM'}"
        ) from error


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give the path of a file with *text*, because ssl reads keys from files only."""
    if sys.platform == "linux":  # in memory: a container may have no folder to write to
        with os.fdopen(os.memfd_create("pem"), "wb", buffering=0) as memory:
            memory.write(text.encode())
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        with NamedTemporaryFile(buffering=0) as file:
            file.write(text.encode())
            yield file.name


def _named(section: Section, key: str) -> str:
    return key if key in section else f"{key}_file"


def _set_versions(context: ssl.SSLContext, section: Section) -> None:
    for key in ("min_version", "max_version"):
        if section.text(key) in _OLD_VERSIONS:
            raise section.wrong(key, f"is {section.text(key)}, which OpenSSL 3 refuses: write TLS12 or TLS13")
    context.minimum_version = _VERSIONS[section.choice("min_version", _VERSIONS, "TLS12")]
    context.maximum_version = _VERSIONS[section.choice("max_version", _VERSIONS, "TLS13")]
    if context.minimum_version > context.maximum_version:
        raise section.wrong("max_version", "is lower than min_version: no version is left")


def _set_ciphers(context: ssl.SSLContext, section: Section) -> None:
    if not section.flag("prefer_server_cipher_suites", default=True):
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    names = section.texts("cipher_suites")
    unknown = next((name for name in names if name not in _CIPHERS and name not in _CIPHERS_13), None)
    if unknown is not None:
        raise section.wrong("cipher_suites", f"has {unknown[:64]!r}: known are {', '.join((*_CIPHERS, *_CIPHERS_13))}")
    ciphers = [_CIPHERS[name] for name in names if name in _CIPHERS]
    if ciphers:
        context.set_ciphers(":".join(ciphers))
    elif names and context.minimum_version < ssl.TLSVersion.TLSv1_3:
        raise section.wrong("cipher_suites", "has none for TLS 1.2: add one, or write min_version: TLS13")


def _set_curve(context: ssl.SSLContext, section: Section) -> None:
    names = section.texts("curve_preferences")
    unknown = next((name for name in names if name not in _CURVES), None)
    if unknown is not None:
        raise section.wrong("curve_preferences", f"has {unknown[:64]!r}: known are {', '.join(_CURVES)}")
    if len(names) > 1:
        raise section.wrong("curve_preferences", "has several, and Python's ssl can set one only: leave one")
    if names:
        context.set_ecdh_curve(_CURVES[names[0]])


def _set_clients(context: ssl.SSLContext, section: Section, authorities: str) -> frozenset[str] | None:
    """Set how clients are verified; return the names of which their certificates must have one, None for any."""
    if section.text("client_auth_type") in _UNVERIFIED:
        raise section.wrong(
            "client_auth_type",
            f"is {section.text('client_auth_type')}, and Python's ssl cannot take certificates that it does not verify:"
            " write RequireAndVerifyClientCert",
        )
    mode = _CLIENT_AUTH[section.choice("client_auth_type", _CLIENT_AUTH, "NoClientCert")]
    sans = frozenset(section.texts("client_allowed_sans")) if "client_allowed_sans" in section else None
    if mode is ssl.CERT_NONE:
        if authorities or sans is not None:
            key = _named(section, "client_ca") if authorities else "client_allowed_sans"
            raise section.wrong(key, "has no effect without client_auth_type: write RequireAndVerifyClientCert there")
        return None
    if not authorities:
        raise section.wrong(
            "client_auth_type",
            "needs client_ca_file, or client_ca: without, a certificate of any public authority would do",
        )
    if sans is not None and not sans:
        raise section.wrong("client_allowed_sans", "names nobody: name somebody or leave it out")
    context.verify_mode = mode
    try:
        context.load_verify_locations(cadata=authorities)
    except ssl.SSLError as error:
        raise section.wrong(_named(section, "client_ca"), "has no certificate in PEM form, or a broken one") from error
    return sans
