"""Events of a session for all who listen; who reads too slowly misses the oldest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from edgemllm.commands.serve.events import event

WAITING = 256
"""Events that wait for one listener at most."""
PING_S = 15.0
"""A comment after so long keeps proxies from closing a quiet connection."""


class Broadcast:
    """Told in any thread, heard in the loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners: set[asyncio.Queue[tuple[str, dict[str, Any]] | None]] = set()

    def tell(self, name: str, **fields: Any) -> None:
        """Send an event to everybody who listens."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, (name, fields))

    def close(self) -> None:
        """End every listener's stream."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, None)

    def _send(self, item: tuple[str, dict[str, Any]] | None) -> None:
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(item)

    async def listen(self, first: dict[str, Any]) -> AsyncIterator[str]:
        """Give events as they come, after one that says how things stand."""
        queue: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue(WAITING)
        self._listeners.add(queue)
        try:
            yield event(first, "stats")
            while True:
                try:
                    item = await asyncio.wait_for(queue.get(), PING_S)
                except asyncio.TimeoutError:
                    yield ": ping\n\n"
                    continue
                if item is None:
                    return
                yield event(item[1], item[0])
        finally:
            self._listeners.discard(queue)
