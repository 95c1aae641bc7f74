"""What `edgemllm serve` does with its options: plan, listen, load, and answer until a signal ends it."""

from __future__ import annotations

import logging
import socket
import sys
from dataclasses import replace

import uvicorn

from edgemllm.commands import options
from edgemllm.commands.plan.report import stop_after
from edgemllm.commands.serve.app import build
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.guard import Rules, is_loopback
from edgemllm.commands.serve.lanes import Lanes
from edgemllm.commands.serve.media import Limits, Media
from edgemllm.commands.serve.memory_plan import MemoryPlan, Share
from edgemllm.commands.serve.options import SafetyOptions, ServerOptions
from edgemllm.device.memory import human_bytes
from edgemllm.errors import UsageError
from edgemllm.launch import Launch, Request, prepare
from edgemllm.models.chat import Sampling

MOST_TOKENS = 4096
"""What `--kv-budget auto` gives one of many caches, at most: the rest of the memory is for others."""
LEAVE_S = 5
"""What answers get to finish when the server ends; `docker stop` waits ten seconds."""


def serve(
    server: ServerOptions,
    safety: SafetyOptions,
    clip: options.SamplingOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    reply: options.AnswerOptions,
    quiet: bool,
    verbose: bool,
    dry_run: bool,
) -> None:
    """Run the command until a signal ends it."""

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    rules = Rules(safety.keys(), safety.most_bytes)
    if not (rules.keys or is_loopback(server.host)):
        raise UsageError(f"--host {server.host} is open to others, and there is no key", "--api-key $(openssl rand -hex 32)")
    media = Media(
        Limits(safety.folder(), safety.allow_private, safety.most_bytes, safety.most_pixels, clip.fps, clip.max_frames)
    )
    launch = _prepare(run.request(system=reply.system, detail=size.detail(), known=["What is there?"]), server.parallel)
    if dry_run:
        stop_after(launch, json=False)
    memory = MemoryPlan(launch.plan)
    with _listen(server) as listening:
        session = launch.open()
        session.format  # noqa: B018 a model that cannot chat is refused here, before somebody asks
        memory.reserve("answers", Share.of(launch.plan))
        sampling = Sampling(reply.max_tokens, reply.temperature, reply.top_p, reply.seed)
        engine = Engine(launch, session.family, sampling, media, memory)
        del session
        lanes = Lanes(server.parallel, server.queue, engine.metrics)
        app = build(engine, lanes, rules, safety.cors, say, verbose)
        caches = f"{server.parallel} answers at once in {human_bytes(launch.plan.kv_bytes)} of {human_bytes(memory.room)}"
        say(f"serving {engine.name} at {_address(listening)} (API: /docs), {caches}")
        logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.CRITICAL)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=LEAVE_S, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _prepare(request: Request, count: int) -> Launch:
    """Return the launch of `count` caches of one size, planned together."""
    launch = prepare(request)
    tokens = launch.budget or launch.plan.kv_budget_tokens
    if request.kv_budget == "auto" and (launch.budget is None or tokens > MOST_TOKENS):
        launch = prepare(replace(request, kv_budget=str(min(tokens, MOST_TOKENS))), checkpoint=launch.checkpoint)
    one = launch.plan
    total = one.total_bytes + (count - 1) * one.kv_bytes
    plan = replace(one, kv_bytes=count * one.kv_bytes, total_bytes=total, fits=total <= one.free_bytes)
    if one.fits and not plan.fits:
        plan = replace(plan, suggestions=(f"a --parallel below {count}, or a smaller --kv-budget",))
    return replace(launch, plan=plan)


def _listen(server: ServerOptions) -> socket.socket:
    """Return the socket that listens. Raises UsageError where it cannot."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        return socket.create_server((server.host, server.port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--host {server.host} --port {server.port}: {reason.lower()}", "--port 0 takes a free one") from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
