"""What `edgemllm serve` does with its options: plan, listen, load, and answer until a signal ends it."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from edgemllm.commands import options
from edgemllm.commands.archive.options import FolderOptions
from edgemllm.commands.plan.report import stop_after
from edgemllm.commands.serve.app import build
from edgemllm.commands.serve.archives import Archives
from edgemllm.commands.serve.budget import bounded, times
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.guard import Rules, is_loopback
from edgemllm.commands.serve.lanes import Lanes
from edgemllm.commands.serve.media import Limits, Media
from edgemllm.commands.serve.memory_plan import MemoryPlan, Share
from edgemllm.commands.serve.options import SafetyOptions, ServerOptions, WatchOptions
from edgemllm.commands.serve.sessions.registry import Registry
from edgemllm.commands.serve.sessions.sources import Sources
from edgemllm.device.memory import human_bytes
from edgemllm.errors import UsageError
from edgemllm.models.chat import Sampling

MOST_CONNECTIONS = 2048
"""More get 503 at once."""
LEAVE_S = 5
"""What answers get to finish when the server ends; `docker stop` waits ten seconds."""


def serve(
    server: ServerOptions,
    safety: SafetyOptions,
    watch: WatchOptions,
    kept: FolderOptions,
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
    media, addresses, periods = Media(_limits(safety, clip)), watch.addresses(run.model), watch.periods()
    request = run.request(system=reply.system, detail=size.detail(), known=["What is there?"])
    launch = times(bounded(request), server.parallel)
    if dry_run:
        stop_after(launch, json=False)
    memory, archives = MemoryPlan(launch.plan), _archives(kept, say)
    with _listen(server) as listening:
        session = launch.open()
        session.format  # noqa: B018 a model that cannot chat is refused here, before somebody asks
        memory.reserve("answers", Share.of(launch.plan))
        sampling = Sampling(reply.max_tokens, reply.temperature, reply.top_p, reply.seed)
        engine = Engine(launch, session.family, sampling, media, memory, say, archives)
        if archives is not None:
            archives.calibrate(session.family)
        del session
        registry = Registry(engine, Sources(addresses, media, clip.fps), watch.folder(), periods)
        app = build(engine, Lanes(server.parallel, server.queue, engine.metrics), registry, rules, safety.cors, verbose)
        caches = f"{server.parallel} answers at once in {human_bytes(launch.plan.kv_bytes)} of {human_bytes(memory.room)}"
        say(f"serving {engine.name} at {_address(listening)} (API: /docs), {caches}")
        logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.CRITICAL)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=LEAVE_S,
        )
        _Server(config, registry.hang_up).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends what never ends by itself as soon as a signal comes."""

    def __init__(self, config: uvicorn.Config, hang_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._hang_up = hang_up

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hang_up()
        super().handle_exit(sig, frame)


def _limits(safety: SafetyOptions, clip: options.SamplingOptions) -> Limits:
    return Limits(safety.folder(), safety.allow_private, safety.most_bytes, safety.most_pixels, clip.fps, clip.max_frames)


def _archives(kept: FolderOptions, say: Callable[[str], None]) -> Archives | None:
    if kept.archive is None:
        return None
    return Archives(kept.archive, kept.most_archive_bytes, kept.archive_share, say)


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
