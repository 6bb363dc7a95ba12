"""Web configuration files, and the certificates that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.certificates import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with certificates of a server and of the client scraper.example. Do not change its files."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    authority.issue("server", "localhost", "127.0.0.1")
    authority.issue("client", "scraper.example", "2001:db8::7")
    return authority


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    """A folder with copies of the authority's files, to be changed."""
    for path in authority.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path
