"""All sessions: made, listed, forgotten, and brought back after a restart."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from edgemllm.commands.serve.budget import bounded
from edgemllm.commands.serve.claim import claim
from edgemllm.commands.serve.engine import Engine, Output
from edgemllm.commands.serve.memory_plan import Share
from edgemllm.commands.serve.options import Periods
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.sessions.broadcast import Broadcast
from edgemllm.commands.serve.sessions.jobs import Done, Job
from edgemllm.commands.serve.sessions.schema import Wish
from edgemllm.commands.serve.sessions.sleeper import Record, Sleeper
from edgemllm.commands.serve.sessions.sources import Sources
from edgemllm.commands.serve.sessions.watched import Watched
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import EdgeError
from edgemllm.launch import Launch
from edgemllm.units import parse_time

MOST = 64
"""Sessions, awake and asleep: each has a file as large as its cache."""
AGAIN_S = 10.0
"""A source that cannot be opened after a restart is tried again this often."""


class Registry:
    """Sessions by name, each with a folder below `folder`. Everything is for the loop's thread."""

    def __init__(self, engine: Engine, sources: Sources, folder: Path, periods: Periods) -> None:
        self.engine, self.sources, self.folder, self.periods = engine, sources, folder, periods
        self.sessions: dict[str, Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = claim(folder, "sessions", "--state")

    def get(self, name: str) -> Watched:
        """Return a session. Raises Refusal (404)."""
        if name not in self.sessions:
            raise Refusal(404, f"no session {name[:40]!r}", "GET /v1/sessions", code="session_not_found")
        return self.sessions[name]

    async def create(self, wish: Wish) -> str:
        """Make a session, and open its source; returns its name. Raises Refusal (409: there is no room), and EdgeErrors."""
        if len(self.sessions) >= MOST:
            raise Refusal(409, f"there are {MOST} sessions already", "delete one", code="too_many_sessions")
        wish = wish.model_copy(update={"archive": self.engine.keeps_archive(wish.archive)})
        launch = await anyio.to_thread.run_sync(self._launch, wish)
        name = uuid.uuid4().hex[:12]
        self.engine.memory.reserve(name, Share.of(launch.plan))
        try:
            opened = await anyio.to_thread.run_sync(self.sources.open, wish) if wish.source is not None else None
        except BaseException:
            self.engine.memory.release(name)
            raise
        (self.folder / name).mkdir()
        (self.folder / name / "session.json").write_text(
            json.dumps({"created": time.time(), "wish": wish.model_dump(mode="json", exclude_defaults=True)})
        )
        watched = self._add(name, wish, launch)
        output: Output[Any] = Output()
        watched.submit(Job(Done(watched.sleeper.wake), output.put, output.end))
        if opened is not None:
            watched.watch(*opened)
        watched.start()
        try:
            async for _ in output:
                pass
            if watched.sleeper.trouble:
                raise Refusal(507, watched.sleeper.trouble, "make room, or archive: false", code="archive_failed")
        except BaseException:
            await self.delete(name)
            raise
        return name

    async def delete(self, name: str) -> None:
        """Forget a session, its files and its archive."""
        watched = self.get(name)
        del self.sessions[name]
        watched.delete()
        await watched.ended.wait()
        await anyio.to_thread.run_sync(shutil.rmtree, self.folder / name, True)
        if self.engine.archives is not None:
            await anyio.to_thread.run_sync(self.engine.archives.remove, name)

    async def bring_back(self) -> None:
        """Bring back what an earlier server left; a session that cannot come back is reported, and its files stay."""
        for file in sorted(self.folder.glob("*/session.json"), key=lambda file: file.stat().st_mtime):
            for half in file.parent.glob(".session.edge.*"):  # a server was killed while it wrote
                half.unlink(missing_ok=True)
            try:
                kept = json.loads(file.read_text())
                wish = Wish.model_validate(kept["wish"])
                watched = self._add(file.parent.name, wish, await anyio.to_thread.run_sync(self._launch, wish))
                await anyio.to_thread.run_sync(watched.sleeper.peek)
            except (EdgeError, ValueError, KeyError, OSError) as error:
                self.engine.say(f"session {file.parent.name} cannot come back: {error}")
                continue
            watched.start()
            if wish.source is not None:
                task = asyncio.create_task(self._reopen(watched))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def hang_up(self) -> None:
        """End the event streams of all sessions; any thread may call this."""
        for watched in self.sessions.values():
            watched.broadcast.close()

    def close(self) -> None:
        """Give up what is still being opened."""
        for task in self._tasks:
            task.cancel()
        self._lock.close()

    async def _reopen(self, watched: Watched) -> None:
        place = watched.record.place
        while True:
            try:
                watched.watch(*await anyio.to_thread.run_sync(self.sources.open, watched.wish, place))
                return
            except EdgeError as error:
                watched.broadcast.tell("lost", source=watched.wish.source, reason=error.message)
                await asyncio.sleep(AGAIN_S)

    def _launch(self, wish: Wish) -> Launch:
        """Plan a session as the command was planned, but for what the wish says. Raises UsageError and DoesNotFitError."""
        own = self.engine.launch.request
        other = wish.policy is not None and wish.policy != self.engine.launch.policy_name
        request = replace(
            own,
            policy=wish.policy or own.policy,
            settings=wish.set or (() if other else own.settings),
            kv_budget=own.kv_budget if wish.kv_budget is None else str(wish.kv_budget),
            system=wish.system or own.system,
            known=[standing.question for standing in wish.ask],
        )
        return bounded(request, self.engine.launch.checkpoint)

    def _add(self, name: str, wish: Wish, launch: Launch) -> Watched:
        record = Record(Schedule([(standing.question, parse_time(standing.every)) for standing in wish.ask]))
        sleeper = Sleeper(name, self.engine, launch, self.folder / name, record, bool(wish.archive))
        watched = self.sessions[name] = Watched(wish, sleeper, self.periods, Broadcast())
        return watched

    def described(self, name: str) -> dict[str, Any]:
        """Return how a session stands."""
        watched = self.get(name)
        launch = watched.sleeper.launch
        fixed = {"id": name, "object": "session", "source": watched.wish.source, "policy": launch.policy_name}
        return {**fixed, "budget_tokens": launch.budget, "status": watched.status, **watched.info}
