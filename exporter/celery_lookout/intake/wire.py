"""A socket that a client library connected, authenticated and handed over: read and written without waiting."""

from __future__ import annotations

import socket
import ssl

from ..broker import Broker, describe
from ..errors import BrokerUnavailable


class Wire:
    """One open connection, plain or TLS. Every method raises BrokerUnavailable when it is gone."""

    def __init__(self, sock: socket.socket, broker: Broker) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._broker = broker

    def fileno(self) -> int:
        """Return the number to wait on."""
        return self._socket.fileno()

    def read_into(self, buffer: bytearray) -> int:
        """Fill *buffer* with what is there and return how many bytes that was; 0 is nothing yet."""
        try:
            count = self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return 0
        except OSError as error:
            raise BrokerUnavailable(describe(self._broker, error)) from error
        if count == 0:
            raise BrokerUnavailable(f"{self._broker.masked_url}: closed the event connection")
        return count

    def write(self, data: bytes) -> int:
        """Send what can be sent at once and return how many bytes that was; a hung broker takes none."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise BrokerUnavailable(describe(self._broker, error)) from error
