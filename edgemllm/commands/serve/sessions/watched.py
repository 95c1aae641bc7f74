"""One session that stays: it takes in its source, does what requests want in between, and is written down when it is quiet."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

from edgemllm.archive.session import name_source
from edgemllm.commands.serve.options import Periods
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.sessions.broadcast import Broadcast
from edgemllm.commands.serve.sessions.jobs import Asked, Job, nobody
from edgemllm.commands.serve.sessions.schema import Wish
from edgemllm.commands.serve.sessions.sleeper import Sleeper
from edgemllm.commands.serve.state import state
from edgemllm.commands.serve.turns import BUSY, RESTING, WAITING, Turn, Work
from edgemllm.errors import EdgeError, OutOfMemoryError, out_of_memory
from edgemllm.media.feed import Feed
from edgemllm.media.frame import Frame
from edgemllm.media.source import Source
from edgemllm.planning.peaks import FRAMES_AT_ONCE

QUIET_S = 1.0
"""A session in which nothing happens for so long is written down."""
AGAIN_S = 60.0
"""After so long it is tried again to write down what could not be written."""
STATS_S = 0.5
"""Between two `stats` events."""
MOST_JOBS = 16
"""Requests that wait for one session."""


class Watched:
    """A session and its source. `status` is watching, open, asleep, lost (the source is gone for good) or failed."""

    def __init__(self, wish: Wish, sleeper: Sleeper, periods: Periods, broadcast: Broadcast) -> None:
        self.wish, self.sleeper, self.periods, self.broadcast = wish, sleeper, periods, broadcast
        self.record, self.engine = sleeper.record, sleeper.engine
        sleeper.heard = lambda notice: broadcast.tell("archive", notice=notice)
        self.interval = 1 / (wish.fps or 1.0)
        self.status, self.reason = "asleep", ""
        self.info: dict[str, Any] = {}
        """How it stood after its latest step."""
        self.picture: Frame | None = None
        """The latest frame."""
        self._source: Source | None = None
        self._feed: Feed | None = None
        self._turn: Turn | None = None
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._changed = self._told = time.monotonic()
        self._dropped: int | None = None
        self.ended = asyncio.Event()
        self._deleted = False

    # ---- for other threads -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take turns."""
        loop = asyncio.get_running_loop()

        def ended(failure: BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.ended.set)

        self._turn = self.engine.turns.add(self._steps(), ended)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Refusal where many wait."""
        with self._lock:
            waiting = [each for each in self._jobs if not each.gone]
            if len(waiting) >= MOST_JOBS:
                raise Refusal(503, f"{len(waiting)} requests wait for this session already", code="overloaded")
            self._jobs = [*waiting, job]
        self._wake()

    def watch(self, source: Source, feed: Feed) -> None:
        """Watch what was opened; its clock starts now."""
        if feed.arrival:  # what a killed server had archived of a camera keeps its seconds
            feed.offset = max(feed.offset, self.sleeper.archived_s)
        self._source, self._feed = source, feed
        feed.begin()
        self._wake()

    def delete(self) -> None:
        """End before the next step, without writing anything down."""
        self._deleted = True
        if self._turn is not None:
            self._turn.cancel()

    def _wake(self) -> None:
        if self._turn is not None:
            self._turn.wake()

    # ---- steps -------------------------------------------------------------------------------------------------

    def _steps(self) -> Work:
        try:
            while True:
                if (job := self._next_job()) is not None:
                    yield from self._do(job)
                elif self._feed is not None:
                    yield from self._look(self._feed)
                else:
                    yield self._rest()
                if self.sleeper.unwritten_s > self.periods.save_s:  # it is never quiet
                    self._save()
        finally:
            self._end()

    def _next_job(self) -> Job | None:
        with self._lock:
            return self._jobs.pop(0) if self._jobs else None

    def _do(self, job: Job) -> Work:
        """Do a job, and report its end. What fails in the middle of a forward pass leaves only what is on disk."""
        failure: BaseException | None = None
        try:
            if not job.gone:
                with out_of_memory(), contextlib.closing(job.steps(self, job)) as steps:
                    for rest in steps:
                        self._note()
                        yield rest
                self._note(at_once=True)
        except GeneratorExit:
            job.end(Refusal(503, "the server, or the session, has ended", code="session_ended"))
            raise
        except Exception as error:
            failure = error
            if isinstance(error, OutOfMemoryError) or not isinstance(error, EdgeError):
                self._fail(error)
        job.end(failure)

    def _look(self, feed: Feed) -> Work:
        """Take in the next frames, or ask what is due before them."""
        try:
            with out_of_memory():
                yield from self._next(feed)
        except Exception as error:
            feed.close()
            self._feed = None
            self._fail(error)

    def _next(self, feed: Feed) -> Work:
        session, due = self.sleeper.wake(), self.record.schedule.next
        assert self._source is not None
        self.status = "watching"
        if self._dropped is None:
            self._dropped = session.meter.dropped
        while feed.notices:
            notice = feed.notices.popleft()
            self.broadcast.tell(notice.event, **{**notice.fields, "source": self.wish.source})
        frames = feed.take(1 if feed.live else FRAMES_AT_ONCE, before=due, wait_s=0)
        if frames:
            name_source(session, self._source.name)
            session.see(frames, self._source.interval)
            session.meter.dropped = self._dropped + feed.dropped
            self.picture, self.record.place = frames[-1], self._source.place(frames[-1])
            self._note()
            yield BUSY
        elif (now := feed.next_time) is not None and now >= due:
            yield from self.ask_due(now)
        elif feed.done:
            yield from self.ask_due(session.meter.video_s)
            self._over(feed)
        else:
            yield WAITING

    def ask_due(self, now: float) -> Work:
        """Ask the standing questions that are due up to a time of the stream."""
        if self.record.schedule.next <= now:
            for question in self.record.schedule.due(now):
                asked = Asked(question, self.engine.sampling_of(self.wish), self.wish.stops)
                yield from asked(self, nobody(asked))

    def _over(self, feed: Feed) -> None:
        feed.close()
        self._feed, self.status, self.reason = None, "open", ""
        if feed.error is not None:
            self.status = "lost"
            self.reason = feed.error.message if isinstance(feed.error, EdgeError) else type(feed.error).__name__
        self._note(at_once=True)
        self.broadcast.tell("ended", reason=self.reason)

    def _rest(self) -> float:
        """Write down what has changed, sleep after a while, and return how long there is nothing to do."""
        if self.sleeper.session is None:
            return RESTING
        quiet = time.monotonic() - self._changed
        if quiet >= QUIET_S and not (self.sleeper.saved or self._save()):
            return AGAIN_S
        if quiet >= self.periods.sleep_s:
            self._leave_memory("asleep")
            return RESTING
        return max(WAITING, (self.periods.sleep_s if self.sleeper.saved else QUIET_S) - quiet)

    def _save(self) -> bool:
        """Write down what changed; a disk that is full ends no session, and is reported."""
        try:
            self.sleeper.save()
        except EdgeError as error:
            self.sleeper.written = time.monotonic()
            self.engine.say(f"warning: session {self.sleeper.name}: {error.message}")
            self.broadcast.tell("unsaved", reason=error.message)
            return False
        self.broadcast.tell("saved")
        return True

    def _fail(self, error: Exception) -> None:
        """Drop a session in which something went wrong; what is on disk can be restored, or asked again."""
        self.reason = error.message if isinstance(error, EdgeError) else f"unexpected {type(error).__name__}"
        self.engine.say(f"error: session {self.sleeper.name}: {self.reason}")
        self._leave_memory("failed")

    def _leave_memory(self, status: str) -> None:
        self.sleeper.drop()
        self.status = status
        self.info = {**self.info, "status": status, "reason": self.reason}
        self.broadcast.tell("stats", **self.info)

    def _end(self) -> None:
        """Write down what changed, and release everything."""
        if self._feed is not None:
            self._feed.close()
        if not self._deleted:
            self._save()
        self.sleeper.drop()
        for job in self._jobs:
            job.end(Refusal(503, "the server, or the session, has ended", code="session_ended"))
        self.broadcast.close()

    # ---- what is reported --------------------------------------------------------------------------------------

    def _note(self, at_once: bool = False) -> None:
        """Note that something has changed; report it `at_once`, or now and then."""
        session, self._changed, self.sleeper.saved = self.sleeper.session, time.monotonic(), False
        if session is None or (self._changed - self._told < STATS_S and self.info and not at_once):
            return
        self._told, meter = self._changed, session.meter
        if self.status in ("asleep", "failed"):
            self.status, self.reason = "open" if self._feed is None else "watching", ""
        counts = {"frames": meter.frames, "dropped": meter.dropped, "lines": meter.lines}
        head = {"status": self.status, "reason": self.reason, "video_s": round(meter.video_s, 3)}
        self.info = {**head, **counts, **state(session), "archive": self.sleeper.about_archive()}
        self.broadcast.tell("stats", **self.info)
