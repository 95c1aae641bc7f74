"""Prose between facts: sentences of a text file, or made-up ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from edgemllm.media.text import document

OWNERS = (
    *("baker", "captain", "doctor", "farmer", "gardener", "judge"),
    *("miller", "nurse", "painter", "sailor", "tailor", "widow"),
)
DOINGS = ("read a letter", "spoke of the weather", "waited for the coach", "looked for a key", "told a long story", "sat down")
PLACES = ("at the window", "by the old bridge", "in the garden", "near the harbour", "on the stairs", "under the lamp")

SENTENCE = re.compile(
    r"""\s*\S.{0,1000}?(?:(?<=[a-z]{3})[.!?]["'”’)]*(?=\s+["'“‘(]*[A-Z])|(?=\n\s*\n)|\Z)"""  # not after Mr. and initials
    r"""|\s*\S.{0,1000}(?=\s)|.{1,1000}""",  # where there are none: pieces, between words if possible
    re.DOTALL,
)


class Prose(Protocol):
    """Where sentences come from."""

    def sentences(self, seed: int, kind: str) -> Iterator[str]:
        """Return sentences, each with the space before it: others for every seed."""
        ...


class MadeUp:
    """Sentences about twelve people."""

    def sentences(self, seed: int, kind: str) -> Iterator[str]:
        """Return sentences without end; unless `kind` is diverse, the same eight again and again."""
        rng = np.random.default_rng([seed, 1])
        prose = self._new(rng)
        return prose if kind == "diverse" else itertools.cycle(list(itertools.islice(prose, 8)))

    def _new(self, rng: np.random.Generator) -> Iterator[str]:
        while True:
            owner, doing, place = (words[int(rng.integers(len(words)))] for words in (OWNERS, DOINGS, PLACES))
            yield f" The {owner} {doing} {place}."


class Book:
    """The sentences of a text file (-: standard input). Raises MissingError where it is missing, empty or not UTF-8."""

    def __init__(self, path: str) -> None:
        self.all: list[str] = SENTENCE.findall("".join(document(path).blocks()).strip())

    def sentences(self, seed: int, kind: str) -> Iterator[str]:
        """Return every sentence once, from a place that the seed chooses; the beginning follows the end."""
        start = int(np.random.default_rng([seed, 2]).integers(max(1, len(self.all))))
        return iter([*self.all[start:], *self.all[:start]])
