"""One model, many users: the thread that computes, a step of one piece of work after a step of another."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator

Work = Generator[float, None, None]
"""Gives after each step how many seconds it can be left alone; closed in the thread in which it runs."""

BUSY, WAITING, RESTING = 0.0, 0.01, math.inf
"""It has computed and would continue at once; it had nothing to do; it has nothing to do until it is woken."""


class Turn:
    """Work that takes its turns, until it ends or is cancelled. Any thread may call its methods."""

    def __init__(self, work: Work, ended: Callable[[BaseException | None], None], changed: threading.Condition) -> None:
        self.work, self.ended, self._changed = work, ended, changed
        self.used = 0.0
        """Seconds it has computed, and more where it came later than others: who used least is next."""
        self.wakes = 0.0
        """When it is to take a step; 0: at once, as before."""
        self.rested = False
        """It did not want its latest turns."""
        self.cancelled = False

    def cancel(self) -> None:
        """End it before its next step."""
        self.cancelled = True
        self.wake()

    def wake(self) -> None:
        """Let it take a step now."""
        with self._changed:
            self.wakes = min(self.wakes, time.monotonic())
            self._changed.notify()


class Turns:
    """Computes in one thread, so that one model serves all; whoever has computed least gets the next step.

    Turns are fair by time, not by count: tokens of an answer are not held up by each other's frames.
    """

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._floor = 0.0
        """What the latest to compute had used: nobody who comes or wakes has a claim to the time before."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether somebody computes."""
        return self._thread.is_alive()

    def add(self, work: Work, ended: Callable[[BaseException | None], None]) -> Turn:
        """Let work take turns; `ended` is called in the model's thread, with what it raised or None."""
        turn = Turn(work, ended, self._changed)
        with self._changed:
            turn.used = self._floor
            self._turns.append(turn)
            self._changed.notify()
        return turn

    def stop(self) -> None:
        """Cancel everything, and wait until it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.alive:
            self._thread.join()

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            self._step(turn)
        for turn in self._turns:
            self._end(turn, None)

    def _next(self) -> Turn | None:
        """Wait for the turn that has used least among those that are awake; None when all is to end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                awake = [turn for turn in self._turns if turn.wakes <= now]
                if awake:
                    turn = min(awake, key=lambda turn: turn.used)
                    turn.rested, turn.wakes = turn.wakes > 0, math.inf
                    return turn
                rest = min((turn.wakes for turn in self._turns), default=math.inf) - now
                self._changed.wait(None if math.isinf(rest) else rest)
        return None

    def _step(self, turn: Turn) -> None:
        began, failure, over, rest = time.monotonic(), None, turn.cancelled, BUSY
        try:
            rest = BUSY if over else next(turn.work)
        except StopIteration:
            over = True
        except BaseException as error:
            over, failure = True, error
        if over:
            with self._changed:
                self._turns.remove(turn)
            self._end(turn, failure)
            return
        now = time.monotonic()
        if rest == BUSY:
            start = max(turn.used, self._floor) if turn.rested else turn.used
            self._floor, turn.used = max(self._floor, start), start + now - began
        with self._changed:  # it may have been woken meanwhile
            turn.wakes = min(turn.wakes, now + rest if rest else 0.0)

    def _end(self, turn: Turn, failure: BaseException | None) -> None:
        """Close work, and report how it ended. What closing raises is no reason for others to stop."""
        try:
            turn.work.close()
        except BaseException as error:
            failure = failure or error
        turn.ended(failure)
