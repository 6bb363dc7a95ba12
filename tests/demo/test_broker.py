from __future__ import annotations

import shutil

import pytest

from celery_lookout.demo import broker
from celery_lookout.demo.processes import Children


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(broker, "_bundled_server", lambda: None)


def test_without_any_server_a_folder_is_the_broker(no_servers: None) -> None:
    with Children() as children:
        chosen = broker.provide_broker(None, children)
        assert chosen.url == "filesystem://"
        assert "reduced demo" in (chosen.remark or "")
        # What one process sends, the others receive.
        (children.folder / "data_out" / "message").touch()
        assert (children.folder / "data_in" / "message").exists()


def test_a_server_on_the_path_comes_before_the_bundled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"valkey-server": "/bin/valkey-server"}
    monkeypatch.setattr(shutil, "which", found.get)
    monkeypatch.setattr(broker, "_start_server", lambda path, origin, children: broker.DemoBroker(path, origin))
    with Children() as children:
        chosen = broker.provide_broker(None, children)
    assert chosen == broker.DemoBroker("/bin/valkey-server", "valkey-server from the PATH")


def test_a_password_is_not_shown() -> None:
    with Children() as children:
        chosen = broker.provide_broker("redis://user:secret@example.org/0", children)
    assert chosen.url == "redis://user:secret@example.org/0"
    assert "secret" not in chosen.description
    assert "example.org" in chosen.description
