"""`/v1/sessions`: sessions that watch, remember and are asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import cv2
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from edgemllm import policies
from edgemllm.commands.serve.described import Described, Told
from edgemllm.commands.serve.engine import Output
from edgemllm.commands.serve.events import STREAMED, EventStream, event, while_there
from edgemllm.commands.serve.refusal import Refusal, told
from edgemllm.commands.serve.sessions.jobs import Asked, Done, Job, Read, Seen, Steps
from edgemllm.commands.serve.sessions.registry import Registry
from edgemllm.commands.serve.sessions.schema import Question, Text, Wish
from edgemllm.commands.serve.sessions.watched import Watched

BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURE = {"requestBody": {"required": True, "content": {"image/jpeg": BINARY, "image/png": BINARY}}}
"""How the API describes the body of a frame."""
SESSION: dict[str, Any] = {"response_model": Described, "response_model_exclude_unset": True}
"""How the API describes a session."""
WIDEST = 1280
"""Pixels of a snapshot."""


def routes(registry: Registry) -> APIRouter:
    """Return the routes of all sessions."""
    router = APIRouter(prefix="/v1", tags=["Sessions"])
    _life(router, registry)
    _input(router, registry)
    _output(router, registry)
    return router


def _life(router: APIRouter, registry: Registry) -> None:
    @router.get("/sources")
    async def sources() -> dict[str, Any]:
        """List what a new session may have: sources, policies, the memory that is left, and an archive or none."""
        memory = registry.engine.memory
        room = {"room_bytes": memory.room, "kv_bytes": memory.kv_bytes}
        kept = registry.engine.archives is not None
        return {"sources": list(registry.sources.addresses), "policies": policies.names(), "memory": room, "archive": kept}

    @router.get("/sessions")
    async def sessions() -> dict[str, Any]:
        """List all sessions."""
        return {"object": "list", "data": [registry.described(name) for name in registry.sessions]}

    @router.post("/sessions", status_code=201, **SESSION)
    async def create(wish: Wish) -> dict[str, Any]:
        """Begin a session; 409 with the arithmetic where its cache does not fit beside the others."""
        return registry.described(await registry.create(wish))

    @router.get("/sessions/{name}", **SESSION)
    async def describe(name: str) -> dict[str, Any]:
        """Describe a session, with its latest answers."""
        return {**registry.described(name), "answers": list(registry.get(name).record.answers)}

    @router.delete("/sessions/{name}", status_code=204, response_class=Response)
    async def delete(name: str) -> Response:
        """Forget a session, and remove its files."""
        await registry.delete(name)
        return Response(status_code=204)

    @router.post("/sessions/{name}/save", **SESSION)
    async def save(name: str, request: Request) -> dict[str, Any]:
        """Keep the session as it is now, for `restore`."""
        watched = registry.get(name)
        [size] = await _done(request, watched, Done(watched.sleeper.keep))
        return {**registry.described(name), "bytes": size}

    @router.post("/sessions/{name}/restore", **SESSION)
    async def restore(name: str, request: Request) -> dict[str, Any]:
        """Put the session back to what was kept; its archive loses nothing by that."""
        watched = registry.get(name)
        await _done(request, watched, Done(watched.sleeper.restore))
        return registry.described(name)

    @router.post("/sessions/{name}/clear", **SESSION)
    async def clear(name: str, request: Request) -> dict[str, Any]:
        """Forget everything that was seen and said, the archive too; the source continues."""
        watched = registry.get(name)
        await _done(request, watched, Done(watched.sleeper.clear))
        return registry.described(name)


def _input(router: APIRouter, registry: Registry) -> None:
    @router.post("/sessions/{name}/frames", openapi_extra=PICTURE, **SESSION)
    async def frames(name: str, request: Request, time: Annotated[float | None, Query(ge=0, le=1e9)] = None) -> dict[str, Any]:
        """Show the next frame, a JPEG or PNG; `time` in seconds of the stream, or one frame after the latest."""
        watched = registry.get(name)
        if watched.wish.source is not None:
            raise Refusal(409, "this session has a source of its own", "a session without one", code="has_source")
        picture = registry.engine.media.sent(await request.body())
        await _done(request, watched, Seen(picture, time))
        return registry.described(name)

    @router.post("/sessions/{name}/text", **SESSION)
    async def text(name: str, body: Text, request: Request) -> dict[str, Any]:
        """Read words, such as a log or a transcript."""
        await _done(request, registry.get(name), Read(body.text))
        return registry.described(name)

    @router.post("/sessions/{name}/ask", responses=STREAMED, response_model=Told, response_model_exclude_unset=True)
    async def ask(name: str, body: Question, request: Request) -> Any:
        """Ask about everything seen so far: events `piece` and, at the end, `answer`; one object without `stream`."""
        watched = registry.get(name)
        steps = Asked(body.question, registry.engine.sampling_of(body), body.stops)
        if not body.stream:
            return (await _done(request, watched, steps))[-1]
        output, job = _begun(watched, steps)
        items = output.__aiter__()
        try:
            first = await while_there(request, anext(items))
        except BaseException:
            job.gone = True
            raise
        return EventStream(_pieces(first, items), job.leave)


def _output(router: APIRouter, registry: Registry) -> None:
    @router.get("/sessions/{name}/events", response_class=StreamingResponse, responses=STREAMED)
    async def events(name: str) -> Any:
        """Give what happens, as server-sent events: stats, answer, archive, lost, back, saved, ended."""
        watched = registry.get(name)
        return EventStream(watched.broadcast.listen(registry.described(name)), lambda: None)

    @router.get("/sessions/{name}/snapshot.jpg", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def snapshot(name: str) -> Response:
        """Give the latest frame."""
        picture = registry.get(name).picture
        if picture is None:
            raise Refusal(404, "this session has seen no frame since the server began", code="no_frame")
        return Response(await anyio.to_thread.run_sync(_jpeg, picture.pixels), media_type="image/jpeg")


def _begun(watched: Watched, steps: Steps) -> tuple[Output[Any], Job]:
    output: Output[Any] = Output()
    job = Job(steps, output.put, output.end)
    watched.submit(job)
    return output, job


async def _done(request: Request, watched: Watched, steps: Steps) -> list[Any]:
    """Do something as long as the client waits; returns what it brought."""
    output, job = _begun(watched, steps)

    async def items() -> list[Any]:
        return [item async for item in output]

    try:
        return await while_there(request, items())
    finally:
        job.gone = True


async def _pieces(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
    item = first
    try:
        while isinstance(item, str):
            yield event({"text": item}, "piece")
            item = await anext(rest)
        yield event(item, "answer")
    except Exception as error:
        yield event(told(error), "error")


def _jpeg(pixels: Any) -> bytes:
    height, width = pixels.shape[:2]
    if width > WIDEST:
        pixels = cv2.resize(pixels, (WIDEST, max(1, round(height * WIDEST / width))), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data)
