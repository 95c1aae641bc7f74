"""A bounded number of answers at once, and a bounded queue before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edgemllm.commands.serve.metrics import Metrics
from edgemllm.commands.serve.refusal import Refusal


class Lanes:
    """Places for `count` answers; up to `most_waiting` requests wait, first come, first served."""

    def __init__(self, count: int, most_waiting: int, metrics: Metrics) -> None:
        self._free = asyncio.Semaphore(count)
        self._most_waiting, self._waiting, self._metrics = most_waiting, 0, metrics

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a place. Raises Refusal (503) where too many wait already."""
        if self._waiting >= self._most_waiting and self._free.locked():
            raise Refusal(503, f"{self._waiting} requests wait already", "again in a while", code="overloaded")
        self._waiting += 1
        self._metrics.answers_waiting.inc()
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
            self._metrics.answers_waiting.dec()
        self._metrics.answers_running.inc()
        try:
            yield
        finally:
            self._metrics.answers_running.dec()
            self._free.release()
