"""The application: routes, errors in OpenAI's form, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from edgemllm.commands.serve import completions
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.guard import Guard, Rules
from edgemllm.commands.serve.lanes import Lanes
from edgemllm.commands.serve.page import add_page
from edgemllm.commands.serve.refusal import form, status_of, told
from edgemllm.commands.serve.sessions import routes
from edgemllm.commands.serve.sessions.registry import Registry
from edgemllm.errors import EdgeError
from edgemllm.version import __version__

ABOUT = "OpenAI's chat completions with pictures and video, answered by one model in a KV cache of fixed size."


class ErrorBody(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """An error."""

    error: ErrorBody


WORDS = {
    400: "It cannot be answered as it stands",
    401: "The key is missing or wrong",
    403: "It names what is not allowed",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It does not fit in memory",
    413: "It is too large",
    500: "The server failed",
    503: "Too many requests wait",
    507: "Memory ran out",
}
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Failure, "description": text} for status, text in WORDS.items()}


def build(
    engine: Engine,
    lanes: Lanes,
    registry: Registry,
    rules: Rules,
    cors: Sequence[str],
    every: bool = False,
) -> ASGIApp:
    """Return the application, which reports refused requests, and with `every` all of them."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        engine.turns.start()
        await registry.bring_back()
        yield
        registry.close()
        await anyio.to_thread.run_sync(engine.turns.stop)

    app = FastAPIOffline(
        redoc_url=None,
        title="edgemllm",
        version=__version__,
        description=ABOUT,
        lifespan=running,
        responses=REFUSALS,
    )
    _errors(app, engine.say)
    _house(app, engine)
    add_page(app)
    app.include_router(completions.routes(engine, lanes))
    app.include_router(routes.routes(registry))
    app.openapi()["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] = [engine.name]
    guarded: ASGIApp = Guard(app, rules, engine.metrics, engine.say, every)
    if cors:
        guarded = CORSMiddleware(guarded, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
    return guarded


def _house(app: FastAPI, engine: Engine) -> None:
    @app.get("/health", tags=["Server"])
    async def health() -> Response:
        """Say whether the model answers."""
        well = engine.turns.alive
        return JSONResponse({"status": "ok" if well else "the model's thread has ended"}, 200 if well else 503)

    @app.get("/metrics", tags=["Server"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give counts for Prometheus."""
        engine.metrics.kv_bytes.set(engine.memory.kv_bytes)
        engine.metrics.kv_room.set(engine.memory.room)
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")


def _errors(app: FastAPI, say: Callable[[str], None]) -> None:
    def answer(request: Request, status: int, content: dict[str, Any]) -> Response:
        request.state.refused = content["error"]["message"]
        headers = {"Retry-After": "5"} if status == 503 else None
        return JSONResponse(content, status, headers)

    @app.exception_handler(EdgeError)
    async def expected(request: Request, error: EdgeError) -> Response:
        return answer(request, status_of(error), told(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = str(first["msg"]).removeprefix("Value error, ")
        return answer(request, 400, form(400, f"{place}: {message}" if place else message, "invalid_value", place or None))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        detail: Any = error.detail  # ours have the form already
        content = detail if isinstance(detail, dict) else form(error.status_code, str(detail))
        return answer(request, error.status_code, content)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        say(f"error: unexpected {type(error).__name__}: {error}")
        return answer(request, 500, told(error))
