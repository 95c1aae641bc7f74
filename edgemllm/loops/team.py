"""Threads that do the parts of a piece of work at the same time, and stay awake for a moment in case there is more.

Waking a thread takes longer than a layer of a small model. A module of its own, as it needs the extra `cpu`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable

import numpy as np

from edgemllm.loops.barrier import count_in, wait_for
from edgemllm.loops.compiled import equal_parts

Work = Callable[[int], None]
AWAKE = 20_000
"""Looks for more work before a thread sleeps: some ten milliseconds."""
WITHOUT_END = 1 << 62


def _nothing(part: int) -> None:
    """Do nothing."""


def _nobody() -> None:
    """Let nobody go, where nobody waits."""


class Team:
    """The thread that calls `run`, and `others`."""

    def __init__(self, others: int) -> None:
        self.posted, self.finished = np.zeros(1, np.int64), np.zeros(1, np.int64)
        """Pieces of work, and parts of them that the others have done, since the beginning."""
        self.others, self.awake = others, False
        self.work: Work = _nothing
        self.let_go: Callable[[], None] = _nobody
        self.busy, self.news = threading.Lock(), threading.Condition()
        self.failed: BaseException | None = None
        """What a part raised that another thread did."""
        for part in range(1, others + 1):
            threading.Thread(target=self._follow, args=(part,), daemon=True, name="edgemllm-team").start()

    def run(self, work: Work, let_go: Callable[[], None] = _nobody) -> bool:
        """Do all parts of the work, 0 in this thread; returns False, with nothing done, where the team is at another's work.

        `let_go` frees those that wait for one that failed.
        """
        if not self.busy.acquire(blocking=False):
            return False
        try:
            self._lead(work, let_go)
        finally:
            self.busy.release()
        return True

    def _lead(self, work: Work, let_go: Callable[[], None]) -> None:
        self.work, self.let_go, self.failed = work, let_go, None
        try:
            with self.news:
                self.posted[0] += 1
                self.news.notify_all()
            work(0)
        except BaseException:
            let_go()
            raise
        finally:
            wait_for(self.finished, self.posted[0] * self.others, WITHOUT_END)
            self.work = _nothing  # holds a cache, which is to be gone when it is dropped
        if self.failed is not None:
            raise self.failed

    def _follow(self, part: int) -> None:
        for turn in range(1, WITHOUT_END):
            if not wait_for(self.posted, turn, AWAKE):
                with self.news:
                    self.awake = False
                    self.news.wait_for(functools.partial(self._has, turn))
                    self.awake = True
            try:
                self.work(part)
            except BaseException as error:  # raised by `run`
                self.failed = error
                self.let_go()
            count_in(self.finished)

    def _has(self, turn: int) -> bool:
        return bool(self.posted[0] >= turn)


def in_parts_where_awake(work: Callable[[int, int], None], stop: int, parts: int) -> None:
    """Do `work` from 0 to `stop`: by a team of `parts` that is awake, else in this thread, as waking takes longer."""
    if parts > 1 and team(parts - 1).awake:
        spans = equal_parts(0, stop, parts)
        if team(parts - 1).run(lambda part: work(*spans[part])):
            return
    work(0, stop)


@functools.cache
def team(others: int) -> Team:
    """Return the team of this many threads besides the caller's."""
    return Team(others)


os.register_at_fork(after_in_child=team.cache_clear)  # threads stay with the parent
