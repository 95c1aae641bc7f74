"""Recall as numbers: shares, errors clustered by stream, paired differences between policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemllm.commands.recall.run import Answers


@dataclass
class Tally:
    """Right and asked of each stream. A share's error is over streams, since questions about one stream are not independent."""

    right: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def add(self, marks: Sequence[bool]) -> None:
        self.right.append(sum(marks))
        self.asked.append(len(marks))

    @property
    def share(self) -> float | None:
        return sum(self.right) / sum(self.asked) if sum(self.asked) else None

    @property
    def error(self) -> float | None:
        """Return the standard error of the share, clustered by stream (a ratio estimator)."""
        share, count = self.share, len(self.asked)
        if share is None or count < 2:
            return None
        spread = sum((right - share * asked) ** 2 for right, asked in zip(self.right, self.asked, strict=True))
        return math.sqrt(spread * count / (count - 1)) / sum(self.asked)

    def as_json(self) -> dict[str, Any]:
        return {"questions": sum(self.asked), "correct": sum(self.right), "share": self.share, "error": self.error}


@dataclass
class Score:
    """Everything counted for one policy."""

    all: Tally = field(default_factory=Tally)
    old: Tally = field(default_factory=Tally)
    recent: Tally = field(default_factory=Tally)
    unseen: Tally = field(default_factory=Tally)
    """`right` is a refusal of what was never shown."""
    doubted: Tally = field(default_factory=Tally)
    """`right` is a refusal of what was shown."""
    by_distance: dict[int, Tally] = field(default_factory=dict)
    held: list[float] = field(default_factory=list)
    peak: int = 0

    def add(self, answers: Answers, bins: Sequence[int]) -> None:
        """Count one stream; a distance counts for the nearest of `bins`."""
        stated = [i for i, distance in enumerate(answers.distances) if distance is not None]
        self.all.add([answers.right[i] for i in stated])
        self.old.add([answers.right[i] for i in stated if not answers.recent[i]])
        self.recent.add([answers.right[i] for i in stated if answers.recent[i]])
        self.doubted.add([answers.refused[i] for i in stated])
        self.unseen.add([answers.right[i] for i in range(len(answers.right)) if i not in stated])
        for where in bins:
            here = [i for i in stated if min(bins, key=lambda each: abs(each - (answers.distances[i] or 0))) == where]
            self.by_distance.setdefault(where, Tally()).add([answers.right[i] for i in here])
        self.held.append(answers.held)
        self.peak = max(self.peak, answers.peak)

    def as_json(self) -> dict[str, Any]:
        """Return the counts of the contract, then what else is known."""
        distances = sorted(self.by_distance.items())
        return {
            "questions": sum(self.all.asked),
            "correct": sum(self.all.right),
            "by_distance": [{"distance_tokens": d, **tally.as_json()} for d, tally in distances if sum(tally.asked)],
            "old": self.old.as_json(),
            "recent": self.recent.as_json(),
            "refused_unseen": self.unseen.as_json() if sum(self.unseen.asked) else None,
            "refused_told": self.doubted.as_json(),
            "held": sum(self.held) / len(self.held) if self.held else None,
            "peak_tokens": self.peak,
        }


def paired(one: Tally, other: Tally) -> dict[str, float | None]:
    """Return the mean difference of the shares over streams that both have seen, and its standard error."""
    pairs = [a / n - b / m for a, n, b, m in zip(one.right, one.asked, other.right, other.asked, strict=False) if n and m]
    if len(pairs) < 2:
        return {"difference": pairs[0] if pairs else None, "error": None}
    mean = sum(pairs) / len(pairs)
    spread = sum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1)
    return {"difference": mean, "error": math.sqrt(spread / len(pairs))}
