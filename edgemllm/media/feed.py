"""A decoder thread in front of a small queue: recordings wait for the model, live sources do not and come back when lost."""

from __future__ import annotations

import atexit
import dataclasses
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from edgemllm.errors import EdgeError, MediaError
from edgemllm.media.frame import Frame
from edgemllm.units import clock

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
"""The wait before connecting again doubles from the first to the second."""


class Reader(Protocol):
    """Anything whose iteration brings frames, such as a Video.

    Where it has a `stop`, that ends the iteration soon and is called from another thread; where it has a `close`, that
    releases it and is called by the thread that iterates.
    """

    path: str

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class Notice:
    """Something about the source that the user should know."""

    event: str
    text: str
    fields: dict[str, Any]


@dataclass(eq=False)
class Feed:
    """Frames of a reader, through a queue of `size`. Use it as a context manager, or iterate: both close it at their end.

    `live`: when the queue is full the oldest frame makes room, and is counted in `dropped`; otherwise the reader waits.
    Frames carry their own times plus `offset`; `arrival`: the time at which they came, counted from `begin`. `paced`: each
    is held back until its time has come. `connect` opens a source that can be lost once more: up to `retries` times
    (-1: indefinitely) before one frame comes.
    """

    reader: Reader
    size: int
    live: bool = False
    arrival: bool = False
    paced: bool = False
    connect: Callable[[], Reader] | None = None
    retries: int = 10
    rate: float = 1.0
    """Frames a second that the reader brings when all is well: to say how many a gap has cost."""
    offset: float = 0.0
    end: float | None = None
    """Stop there, where the reader does not do it."""
    full_batches: bool = False
    """`take` waits for as many frames as it was asked for, so that batches do not depend on the speed of the machine."""
    stopping: Callable[[], bool] = lambda: False
    """Whether an iteration is to end, also while it waits for a reader that brings nothing."""

    def __post_init__(self) -> None:
        self.dropped = self.missed = 0
        """Frames that the model was too slow for, and, about, frames of the gaps in which the source was away."""
        self.error: Exception | None = None
        self.ended = False
        self.last = self.offset
        """Time of the latest frame that came."""
        self.notices: deque[Notice] = deque(maxlen=64)
        self._queue: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._started, self._closed = threading.Event(), threading.Event()
        self._began = self._lost = 0.0
        self._origin: float | None = None
        self._attempts = 0
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        # From the start, so that a live source is read (and discarded) while the model is being loaded.
        self._thread.start()
        _open.add(self)

    # ---- for the one who watches -------------------------------------------------------------------------------

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def begin(self) -> None:
        """Start the clock of a live source; what came before is not shown."""
        with self._changed:
            if self.arrival:
                self._queue.clear()
            self._began = time.monotonic()
            self._started.set()

    @property
    def interval(self) -> float | None:
        """Return the seconds between frames, where the reader keeps to one."""
        return getattr(self.reader, "interval", None)

    def __iter__(self) -> Iterator[Frame]:
        """Give every frame of a recording, decoded while the model works on those before it. Raises what the reader raised."""
        try:
            while not (self.done or self.stopping()):
                yield from self.take(self.size, wait_s=1.0)
        finally:
            self.close()
        raise_error(self)

    def take(self, most: int, before: float = math.inf, wait_s: float = 0.1) -> list[Frame]:
        """Return the next frames, at most `most`, earlier than `before`; empty where none came in time."""

        def ready() -> bool:
            enough = len(self._queue) >= (min(most, self.size) if self.full_batches else 1)
            return enough or self.ended or bool(self._queue and self._queue[-1].time >= before)

        taken: list[Frame] = []
        with self._changed:
            if self._changed.wait_for(ready, wait_s):
                while self._queue and len(taken) < most and self._queue[0].time < before:
                    taken.append(self._queue.popleft())
                self._changed.notify_all()
        return taken

    @property
    def next_time(self) -> float | None:
        """Return the time of the frame that `take` gives next, if one is waiting."""
        with self._changed:
            return self._queue[0].time if self._queue else None

    @property
    def done(self) -> bool:
        """Return whether nothing is left and nothing will come; `error` says why, if not because the source has ended."""
        with self._changed:
            return self.ended and not self._queue

    def close(self) -> None:
        """Stop reading. Frames of a live source that still wait count as dropped."""
        self._closed.set()
        _call(self.reader, "stop")
        with self._changed:
            self.dropped += len(self._queue) if self.live else 0
            self._queue.clear()
            self._changed.notify_all()
        self._started.set()
        self._thread.join(timeout=1.0)

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            reason = self._read()
            while self.connect is not None and not self._closed.is_set() and not self._past_end():
                if self._connect_again(self.connect, reason):
                    reason = self._read()
        except Exception as error:  # reported by the main thread, which has the user's attention
            self.error = error
        finally:
            _call(self.reader, "close")
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _read(self) -> str:
        """Queue what the reader brings; return why it ended."""
        try:
            for frame in self.reader:
                if self._closed.is_set() or not self._put(frame):
                    break
        except MediaError as error:
            if self.connect is None:
                raise
            return error.message
        finally:
            if self.connect is not None:
                _call(self.reader, "close")
        return "it ended"

    def _put(self, frame: Frame) -> bool:
        """Stamp and queue a frame; False once it is past the end."""
        if self.paced:
            self._started.wait()
            self._origin = frame.time if self._origin is None else self._origin
            self._closed.wait(max(0.0, frame.time - self._origin - (time.monotonic() - self._began)))
        if self.arrival and not self._started.is_set():
            return True
        seconds = self.offset + (time.monotonic() - self._began if self.arrival else frame.time)
        if self._attempts:
            self._report_return(seconds)
        self.last = seconds
        if self._past_end():
            return False
        with self._changed:
            if self.live and len(self._queue) >= self.size:
                self._queue.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: len(self._queue) < self.size or self._closed.is_set())
            self._queue.append(dataclasses.replace(frame, time=seconds))
            self._changed.notify_all()
        return True

    def _past_end(self) -> bool:
        return self.end is not None and self.last >= self.end

    def _connect_again(self, connect: Callable[[], Reader], reason: str) -> bool:
        """Wait and try once. Raises MediaError when that was tried often enough."""
        name = self.reader.path
        if not self._attempts:
            self._lost = time.monotonic()
            text = f"{name} was lost at {clock(self.last)} ({reason}); connecting again"
            self.notices.append(Notice("lost", text, {"source": name, "video_s": round(self.last, 3), "reason": reason}))
        if self._attempts == self.retries:
            raise MediaError(
                f"{name} was lost for good at {clock(self.last)}: {self.retries} attempts in "
                f"{time.monotonic() - self._lost:.0f} s brought no frame",
                "check the camera and the network, or allow more with --retries (-1: indefinitely)",
            )
        wait = min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** min(self._attempts, 10))
        self._attempts += 1
        if self._closed.wait(wait):
            return False
        try:
            self.reader = connect()
        except MediaError:
            return False
        return True

    def _report_return(self, now: float) -> None:
        gap = now - self.last
        missed = max(0, round(gap * self.rate) - 1)
        self.missed += missed
        text = (
            f"{self.reader.path} is back after {gap:.1f} s and {self._attempts} attempt{'s' if self._attempts > 1 else ''}: "
            f"about {missed} frames missed at {self.rate:g} a second"
        )
        fields = {"source": self.reader.path, "video_s": round(now, 3), "gap_s": round(gap, 3), "frames_missed": missed}
        self.notices.append(Notice("back", text, {**fields, "attempts": self._attempts}))
        self._attempts = 0


def raise_error(feed: Feed) -> None:
    """Raise what went wrong in the thread, if anything."""
    if isinstance(feed.error, EdgeError):
        raise feed.error
    if feed.error is not None:
        raise MediaError(f"{feed.reader.path} cannot be read: {feed.error}") from feed.error


def _call(reader: Reader, name: str) -> None:
    """Call a method that not every reader has."""
    getattr(reader, name, lambda: None)()


_open: weakref.WeakSet[Feed] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what an error has left open, before Python ends.

    A daemon thread that returns from OpenCV to an interpreter which is shutting down is killed in the middle of C++ code:
    the process aborts, or never ends (https://github.com/python/cpython/issues/87135).
    """
    for feed in list(_open):
        feed.close()
