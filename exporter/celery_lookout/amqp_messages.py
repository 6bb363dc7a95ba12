"""
Messages that py-amqp cannot read: without this, one of them would come back for ever.

It decodes all properties of a message as soon as they arrive, and the connection breaks when that fails: on text that
is no UTF-8, on a time past the year 9999, on tables in tables. RabbitMQ then delivers the message again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from amqp.method_framing import frame_handler
from amqp.serialization import PROPERTY_CLASSES

_HEADER: Final = 2
#: Bytes of a header frame before its property flags: class, weight and size of the body.
_BEFORE_FLAGS: Final = 12
_NO_PROPERTIES: Final = b"\0\0"


def handle_frames(connection: Any, callback: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    """Return what py-amqp calls with each frame: as its own, but properties that cannot be read are left away."""
    handle = frame_handler(connection, callback, **options)

    def on_frame(frame: tuple[int, int, bytes]) -> Any:
        kind, channel, payload = frame
        if kind == _HEADER and not _is_readable(payload):
            frame = (kind, channel, bytes(payload[:_BEFORE_FLAGS]) + _NO_PROPERTIES)
        return handle(frame)

    return on_frame


def _is_readable(payload: bytes) -> bool:
    decode = PROPERTY_CLASSES.get(int.from_bytes(payload[:2], "big"))
    if decode is None:
        return True  # py-amqp knows better what to say
    try:
        decode(payload, _BEFORE_FLAGS)
    except Exception:  # noqa: BLE001  # anybody's bytes, and any of py-amqp's, struct's and datetime's errors
        return False
    return True
