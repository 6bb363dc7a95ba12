"""Certificates for tests: of a server and of clients, by an authority that a test trusts or does not."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    """An authority whose files are in *folder*: its own ``ca.pem``, and what it issues."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, *identities: str) -> None:
        """Write ``NAME.pem`` and ``NAME.key`` for a certificate with these names or addresses."""
        issued = self._ca.issue_cert(*identities)
        issued.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
        (self.folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def client_context(self, name: str = "") -> ssl.SSLContext:
        """Return what a client needs that trusts this authority and shows the certificate *name*, if any."""
        context = ssl.create_default_context(cafile=str(self.path))
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context
