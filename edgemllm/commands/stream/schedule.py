"""Which question is due when: standing ones every so often, others at a set time, others at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgemllm.errors import UsageError
from edgemllm.units import parse_time

END = "end"
"""As a time: after the last frame."""


@dataclass
class Schedule:
    """Questions and their times, in seconds of the stream. A standing question counts from `start`."""

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
        if len(every) > 1 and len(every) != len(ask):
            raise UsageError(f"{len(ask)} --ask but {len(every)} --every", "one --every for all questions, or one for each")
        if every and not ask:
            raise UsageError("--every without a question", '--ask "What is on the screen now?" --every 30s')
        intervals = [parse_time(text) for text in every or ["30s"]]
        if min(intervals) <= 0:
            raise UsageError("--every 0 would never stop asking", "an interval such as 30s")
        timed, final = [], []
        for entry in at:
            when, _, question = entry.strip().partition(" ")
            if when != END:
                timed.append((parse_time(when), question.strip()))
            else:
                final.append(question.strip())
        if not all(question.strip() for question in (*ask, *final, *(question for _, question in timed))):
            raise UsageError("a question is empty", '--at 00:10:00 "What is on the screen now?"')
        pairs = list(zip(ask, intervals if len(every) > 1 else intervals * len(ask), strict=True))
        return cls(pairs, sorted(timed), final, start)

    @property
    def next(self) -> float:
        """Return when the next question is due; infinity where none is."""
        times = [self._next_of(every) for _, every in self.standing]
        return min([*times, *(when for when, _ in self.timed if when > self.asked)], default=math.inf)

    def due(self, now: float) -> list[str]:
        """Return the questions due up to `now`, each once however often it was due; they count as asked."""
        found = [question for when, question in self.timed if self.asked < when <= now]
        found += [question for question, every in self.standing if self._next_of(every) <= now]
        self.asked = max(self.asked, now)
        return found

    def missed(self) -> list[tuple[float, str]]:
        """Return the questions whose time has not come."""
        return [(when, question) for when, question in self.timed if when > self.asked]

    def _next_of(self, every: float) -> float:
        """Return the first tick of an interval after what has been asked; the start itself is none."""
        ticks = max(0, math.floor((self.asked - self.start) / every + 1e-9)) if self.asked > -math.inf else 0
        return self.start + (ticks + 1) * every
