"""A text on its way into a session, piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from edgemllm.cache.chunk import Chunk
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.tokens import Token, end_of, tokenize


class Document:
    """Turns pieces, cut at a line or between two words, into tokens: nearly those that the whole text at once would give."""

    def __init__(self, tokenizer: Any, context: str = "") -> None:
        self.tokenizer = tokenizer
        self.context = context
        """The end of what came, after which the next piece is tokenized."""
        self.waiting: list[Token] = []
        """Tokens that lack others for a whole chunk."""

    def parts(self, piece: str, most: int, whole: bool = False) -> list[list[Token]]:
        """Return what waited and the tokens of the next piece, in parts of `most`, and the rest in powers of two.

        `whole`: the rest waits for the next piece.
        """
        tokens = [*self.waiting, *tokenize(self.tokenizer, self.context, piece, special=False)]
        end = len(tokens) - (len(tokens) % most if whole else 0)
        tokens, self.waiting = tokens[:end], tokens[end:]
        self.context = end_of(self.context, piece)
        cuts = itertools.accumulate(_sizes(end, most), initial=0)
        return [tokens[start:stop] for start, stop in itertools.pairwise(cuts)]


def _sizes(count: int, most: int) -> Iterator[int]:
    """Share tokens out to few sizes: a processor's libraries compile for each one that they meet, and keep that."""
    while count:
        size = most if count >= most else 1 << count.bit_length() - 1
        yield size
        count -= size


def numbered(family: ModelFamily, tokens: Sequence[Token], offset: int, line: int) -> Chunk:
    """Return tokens as a chunk at stream position `offset`, each with the number of the line in which it begins.

    The first begins in `line`.
    """
    lines = itertools.accumulate((ends for _, _, ends in tokens[:-1]), initial=line)
    time = torch.tensor([list(lines)], dtype=torch.float32, device=family.device)
    return replace(family.text([token for token, _, _ in tokens], offset), time=time)
