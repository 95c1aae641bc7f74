"""Which question is due when: standing ones every so often, others at a set time or line, others at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgemllm.errors import UsageError
from edgemllm.units import parse_time_or_lines

END = "end"
"""As a time: after the last frame."""


@dataclass
class Schedule:
    """Questions and their times, in seconds of the stream or lines of a text. A standing question counts from `start`."""

    standing: Sequence[tuple[str, float]] = ()
    """Question and interval."""
    timed: Sequence[tuple[float, str]] = ()
    final: Sequence[str] = ()
    start: float = 0.0
    asked: float = field(default=-math.inf)
    """Everything due up to here has been asked."""

    @classmethod
    def parse(cls, ask: Sequence[str], every: Sequence[str], at: Sequence[str], start: float = 0.0) -> Schedule:
        """Read it from `--ask`, `--every` (one for all, or one for each) and `--at "TIME QUESTION"`. Raises UsageError."""
        timed, by_line = cls.parse_both(ask, every, at, start)
        if by_line.standing or by_line.timed:
            raise UsageError("only a text has lines to count", "--text FILE, or a time such as 30s")
        return timed

    @classmethod
    def parse_both(
        cls, ask: Sequence[str], every: Sequence[str], at: Sequence[str], start: float = 0.0
    ) -> tuple[Schedule, Schedule]:
        """Read both what is asked by the clock and what after lines: as `parse`, where `1000lines` may stand for a time."""
        if len(every) > 1 and len(every) != len(ask):
            raise UsageError(f"{len(ask)} --ask but {len(every)} --every", "one --every for all questions, or one for each")
        if every and not ask:
            raise UsageError("--every without a question", '--ask "What is on the screen now?" --every 30s')
        intervals = [parse_time_or_lines(text) for text in every or ["30s"]]
        if min(amount for amount, _ in intervals) <= 0:
            raise UsageError("--every 0 would never stop asking", "an interval such as 30s")
        intervals = intervals if len(every) > 1 else intervals * len(ask)
        timed: list[tuple[float, bool, str]] = []
        final = []
        for entry in at:
            when, _, question = entry.strip().partition(" ")
            if when != END:
                timed.append((*parse_time_or_lines(when), question.strip()))
            else:
                final.append(question.strip())
        if not all(question.strip() for question in (*ask, *final, *(question for *_, question in timed))):
            raise UsageError("a question is empty", '--at 00:10:00 "What is on the screen now?"')

        def of(lines: bool) -> Schedule:
            standing = [(question, every) for question, (every, unit) in zip(ask, intervals, strict=True) if unit == lines]
            return cls(standing, sorted((when, question) for when, unit, question in timed if unit == lines), start=start)

        by_clock, by_line = of(False), of(True)
        by_clock.final, by_line.start = final, 0.0
        return by_clock, by_line

    @property
    def questions(self) -> list[str]:
        """Return every question, of any time."""
        return [*(question for question, _ in self.standing), *(question for _, question in self.timed), *self.final]

    @property
    def next(self) -> float:
        """Return when the next question is due; infinity where none is."""
        times = [self._next_of(every) for _, every in self.standing]
        return min([*times, *(when for when, _ in self.timed if when > self.asked)], default=math.inf)

    def due(self, now: float, standing: bool = True) -> list[str]:
        """Return the questions due up to `now`, each once however often it was due; they count as asked.

        Not `standing`: standing ones are left out this time.
        """
        found = [question for when, question in self.timed if self.asked < when <= now]
        found += [question for question, every in self.standing if standing and self._next_of(every) <= now]
        self.asked = max(self.asked, now)
        return found

    def missed(self) -> list[tuple[float, str]]:
        """Return the questions whose time has not come."""
        return [(when, question) for when, question in self.timed if when > self.asked]

    def _next_of(self, every: float) -> float:
        """Return the first tick of an interval after what has been asked; the start itself is none."""
        ticks = max(0, math.floor((self.asked - self.start) / every + 1e-9)) if self.asked > -math.inf else 0
        return self.start + (ticks + 1) * every
