"""
Messages through kombu as they came: nothing decompressed or decoded, and no error from one that is none.

kombu decompresses whatever says so in its headers, without a limit, before any callback sees the message. Of transports
that keep messages as JSON, it trusts that JSON to be a message.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

#: Where a message has what it said of its compression.
REFUSED_COMPRESSION: Final = "refused-compression"


def leave_messages_alone(channel: Any) -> None:
    """
    Make *channel* hand over all bodies as they are. Of those that are compressed, the header is renamed.

    What is no message becomes one without a body and without properties.
    """
    # py-amqp decodes a text by whatever codec the message names; with some that takes hours for a megabyte.
    channel.auto_decode = False
    plain: Any = channel.Message

    class RawMessage(plain):  # type: ignore[misc]  # the class is known only at run time
        def __init__(self, raw: Any, *args: Any, **kwargs: Any) -> None:
            properties = getattr(raw, "properties", None)
            headers = raw.get("headers") if isinstance(raw, dict) else (properties or {}).get("application_headers")
            if isinstance(headers, dict) and "compression" in headers:
                headers[REFUSED_COMPRESSION] = headers.pop("compression")
            try:
                super().__init__(raw, *args, **kwargs)
            except (AttributeError, KeyError, TypeError, ValueError):
                tag = str(uuid4())
                super().__init__({"properties": {"delivery_tag": tag}}, *args, **kwargs)

    channel.Message = RawMessage


def body_of(message: Any) -> bytes | None:
    """Return the body of a kombu message; None where it is no text: in JSON it may be anything."""
    body = message.body
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else None


def text_of(value: object) -> str | None:
    """Return a property of a kombu message; None where it is no text."""
    return value if isinstance(value, str) else None


def is_compressed(message: Any) -> bool:
    """Say whether a kombu message said that its body is."""
    return REFUSED_COMPRESSION in message.headers
