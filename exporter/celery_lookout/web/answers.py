"""
Sends what may be large, and lets no slow reader hold on to it.

aiohttp waits for a reader for as long as it takes, and each one holds its own copy of the page.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from ..metrics.web import WebMetrics

#: Seconds that a client may take to read an answer; Prometheus gives up after 10 by default.
ANSWER_SECONDS: Final = 60.0
#: Bytes of all answers under way; past that the oldest is given up. A scrape of 200,000 series has some 20 MB.
MOST_BYTES: Final = 64 * 2**20
#: Bytes written at a time; more than 64 KiB, since aiohttp waits for the reader only after so many.
_PIECE: Final = 2**17


class Answers:
    """All answers under way."""

    def __init__(self, metrics: WebMetrics) -> None:
        self._metrics = metrics
        #: The oldest first, with its connection and its size.
        self._under_way: dict[web.StreamResponse, tuple[asyncio.Transport | None, int]] = {}

    async def send(self, request: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        """Answer *request* with *body*; a client that does not read it in time loses its connection."""
        answer = web.StreamResponse(headers=headers)
        answer.content_length = len(body)
        self._make_room(len(body))
        self._under_way[answer] = (request.transport, len(body))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await answer.prepare(request)
                if request.method != "HEAD":
                    for start in range(0, len(body), _PIECE):
                        await answer.write(memoryview(body)[start : start + _PIECE])
                await answer.write_eof()
        except ConnectionError:
            pass  # the client went away, or we cut it off: aiohttp sees that for itself
        except TimeoutError:
            self._give_up(answer)
        finally:
            self._under_way.pop(answer, None)
        return answer

    def _make_room(self, size: int) -> None:
        while self._under_way and size + sum(taken for _, taken in self._under_way.values()) > MOST_BYTES:
            self._give_up(next(iter(self._under_way)))

    def _give_up(self, answer: web.StreamResponse) -> None:
        connection, _ = self._under_way.pop(answer, (None, 0))
        if connection is not None:
            self._metrics.refuse("slow")
            connection.abort()
