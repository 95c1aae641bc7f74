"""Needles in a haystack: a long stream with facts at known places, and the questions about them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgemllm.errors import UsageError

RECENT = 8
"""The newest needle ends within this many items of the end, or fewer."""
RECENT_TOKENS = 64
"""What follows the newest needle of a text, at most: sentences of books are long."""


@dataclass(frozen=True)
class Statement:
    """A fact in words, and how one asks for it."""

    words: str
    question: str
    answer: str
    beginning: str = ""
    """What the answer begins with, given to the model; empty: the question itself is a sentence to complete."""
    form: str = "text"


@dataclass(frozen=True)
class Needle:
    """A fact, the items of the stream that state it, and how one asks for it."""

    first: int
    last: int
    question: str
    answer: str
    beginning: str = ""
    form: str = "slides"


@dataclass(frozen=True)
class Haystack:
    """Items are frames at one a second, or sentences, each with the space before it."""

    items: Sequence[Any]
    needles: Sequence[Needle]
    """In the order of the stream; the last one is recent."""
    unseen: Sequence[str]
    """Questions about facts that were never shown."""
    seed: int
    recent: int = RECENT
    """A needle is recent within this many items of the end."""

    @property
    def questions(self) -> list[str]:
        """Return everything that will be asked."""
        return [*(needle.question for needle in self.needles), *self.unseen]


def places(length: int, count: int, hold: int, recent: int = RECENT) -> list[int]:
    """Return the first items of `count` needles of `hold` items each: evenly spread, the last one within `recent` of the end.

    Raises UsageError where they would lie on one another.
    """
    end = length - recent
    most = (end - 2 * hold) // hold + 1
    if count > most:
        fewer = f"--facts {most} at most, or " if most > 1 else ""
        raise UsageError(f"{count} facts do not fit into a stream of {length} items", f"{fewer}more --tokens")
    return [round(i * (end - 2 * hold) / max(count - 1, 1)) for i in range(count - 1)] + [length - recent + 1]


def check_count(count: int, most: int, what: str) -> None:
    """Raise UsageError where a stream would need more different facts than there are."""
    if count > most:
        raise UsageError(f"--facts {count}: there are no more than {most} different {what}", f"--facts {most}")


def hide(statements: Sequence[Statement], prose: Iterator[str], tokens: int, size: Callable[[str], int], seed: int) -> Haystack:
    """Return about `tokens` tokens (as `size` counts them) of prose with the statements between its sentences.

    Raises UsageError where the prose ends before.
    """
    room = tokens - sum(size(each.words) for each in statements)
    items: list[str] = []
    while room > 0:
        sentence = next(prose, None)
        if sentence is None:
            raise UsageError(
                f"the prose ends {room} tokens before the {tokens} of a stream", "a longer --haystack, or fewer --tokens"
            )
        items.append(sentence)
        room -= size(sentence)
    after = itertools.takewhile(lambda told: told <= RECENT_TOKENS, itertools.accumulate(map(size, reversed(items))))
    recent = min(RECENT, 2 + len(list(after)))
    needles = []
    for each, first in zip(statements, places(len(items) + len(statements), len(statements), 1, recent), strict=True):
        items.insert(first, each.words)
        needles.append(Needle(first, first, each.question, each.answer, each.beginning, each.form))
    return Haystack(items, needles, (), seed, recent)
