"""One answer to one request: from the queue over the model's turns to the client, as long as the client is there."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from edgemllm.commands.serve.conversation import Conversation, answer, read, take_in
from edgemllm.commands.serve.engine import Engine, Output, take_turns
from edgemllm.commands.serve.lanes import Lanes
from edgemllm.commands.serve.schema import ChatRequest
from edgemllm.commands.serve.state import state
from edgemllm.commands.serve.turns import Work
from edgemllm.models.chat import Sampling
from edgemllm.session import Session


@dataclass(frozen=True)
class Summary:
    """What stands beside a whole answer."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    edgemllm: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        """Return the tokens as OpenAI counts them."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


class Answer:
    """Pieces of text, and a Summary at the end. To be closed: what is not taken by then is not computed."""

    def __init__(self, engine: Engine, lanes: Lanes, request: ChatRequest) -> None:
        self.engine, self.lanes, self.request = engine, lanes, request
        self._output: Output[str | Summary] = Output()
        # A task of its own: the place is free for others once the model is done, however slowly the client reads.
        self._task = asyncio.create_task(self._run())

    def __aiter__(self) -> AsyncIterator[str | Summary]:
        return self._output.__aiter__()

    def close(self) -> None:
        """End it at the next token, if it has not ended."""
        if self._task.cancel():
            self.engine.metrics.abandoned.inc()

    async def _run(self) -> None:
        try:
            async with self.lanes.one():
                with tempfile.TemporaryDirectory(prefix="edgemllm-", ignore_cleanup_errors=True) as folder:
                    found = await anyio.to_thread.run_sync(read, self.request.messages, self.engine.media, Path(folder))
                    await take_turns(self.engine.turns, self._archived(found))
        except Exception as error:
            self._output.close(error)
        else:
            self._output.close()

    def _archived(self, conversation: Conversation) -> Work:
        """Answer, with an archive for as long as that takes where one helps: for a video whose tokens may be evicted."""
        archives = self.engine.archives if conversation.has_video and self.request.archive is not False else None
        with archives.for_an_answer() if archives else nullcontext(Session) as make:
            yield from self._steps(conversation, make)

    def _steps(self, conversation: Conversation, make: Callable[..., Session]) -> Work:
        began = time.monotonic()
        question = conversation.exchanges[-1].question if conversation.has_media else None
        session = self.engine.session(conversation.system, question, make)
        sampling = self.engine.sampling_of(self.request)
        first: float | None = None

        def say(text: str) -> None:
            nonlocal first
            first = first or time.monotonic() - began
            self._output.put(text)

        try:
            yield from take_in(session, conversation.exchanges)
            seen = session.cache.seen
            yield from answer(session, sampling, self.request.stops, say)
            about = {**state(session), "ttft_ms": round(1000 * (first or 0.0), 1), "ignored": self.request.ignored}
            self._output.put(_summary(session, sampling, seen, about))
        finally:
            self._count(session, first)

    def _count(self, session: Session, first: float | None) -> None:
        metrics, meter = self.engine.metrics, session.meter
        metrics.prompt_tokens.inc(meter.prefill_tokens)
        metrics.generated_tokens.inc(meter.decode_tokens)
        metrics.evicted_tokens.inc(session.kv()["evicted_tokens"])
        if first is not None:
            metrics.first_token.observe(first)


def _summary(session: Session, sampling: Sampling, seen: int, about: dict[str, Any]) -> Summary:
    count = session.meter.decode_tokens
    cut = count >= sampling.max_tokens and not session.stopped
    return Summary(seen, count, "length" if cut else "stop", about)
