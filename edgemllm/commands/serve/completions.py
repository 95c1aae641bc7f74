"""`/v1/chat/completions` and `/v1/models`, as OpenAI's clients call them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from edgemllm.commands.serve.answers import Answer, Summary
from edgemllm.commands.serve.described import Completion
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.events import STREAMED, EventStream, event, while_there
from edgemllm.commands.serve.lanes import Lanes
from edgemllm.commands.serve.refusal import Refusal, told
from edgemllm.commands.serve.schema import ChatRequest


def routes(engine: Engine, lanes: Lanes) -> APIRouter:
    """Return the routes of one model."""
    router, began = APIRouter(prefix="/v1", tags=["OpenAI"]), int(time.time())
    model = {"id": engine.name, "object": "model", "created": began, "owned_by": "edgemllm"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the one model that is loaded."""
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Describe it."""
        _check_model(engine, name)
        return model

    @router.post("/chat/completions", responses=STREAMED, response_model=Completion, response_model_exclude_unset=True)
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        """Answer a conversation that may show pictures and videos; with `stream` as server-sent events."""
        _check_model(engine, body.model)
        engine.keeps_archive(body.archive)
        answer, head = Answer(engine, lanes, body), _head(engine.name, bool(body.stream))
        try:
            # Until the first piece, or the failure, is there: so errors have their status.
            items = answer.__aiter__()
            first = await while_there(request, anext(items))
            if not body.stream:
                return await while_there(request, _whole(head, first, items))
        except BaseException:
            answer.close()
            raise
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(_events(head, first, items, usage), answer.close)

    return router


def _check_model(engine: Engine, name: str) -> None:
    if name != engine.name:
        raise Refusal(404, f"model {name[:100]!r} is not served here", engine.name, code="model_not_found", param="model")


def _head(model: str, stream: bool) -> dict[str, Any]:
    kind = "chat.completion.chunk" if stream else "chat.completion"
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


async def _whole(head: dict[str, Any], first: str | Summary, rest: AsyncIterator[str | Summary]) -> dict[str, Any]:
    """Return the one object of an answer that is not streamed."""
    items = [first] + [item async for item in rest]
    summary = items[-1]
    assert isinstance(summary, Summary)
    text = "".join(item for item in items if isinstance(item, str)).rstrip()
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": summary.finish_reason}
    return {**head, "choices": [choice], "usage": summary.usage, "edgemllm": summary.edgemllm}


async def _events(
    head: dict[str, Any], first: str | Summary, rest: AsyncIterator[str | Summary], usage: bool
) -> AsyncIterator[str]:
    """Give the events of a streamed answer; a failure on the way is one of them."""

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**head, "choices": [choice], **({"usage": None} if usage else {}), **more})

    yield chunk({"role": "assistant", "content": ""})
    item = first
    try:
        while isinstance(item, str):
            yield chunk({"content": item})
            item = await anext(rest)
        async for _ in rest:  # to the end of the work, which is when nothing is left to be cancelled
            pass
    except Exception as error:
        yield event(told(error))
        return
    yield chunk({}, item.finish_reason, edgemllm=item.edgemllm)
    if usage:
        yield event({**head, "choices": [], "usage": item.usage})
    yield event("[DONE]")
