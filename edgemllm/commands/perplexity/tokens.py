"""Text to tokens piece by piece: the same tokens as those of the whole text, in constant memory.

The text is cut between two words, where a letter, one space and a letter meet. Tokenizers that split into words first
(GPT-2's, Llama-3's, Qwen's and what descends from them) put a boundary there whatever stands around it, and so do
SentencePiece vocabularies, in which a space only begins a token: then the tokens are those of the whole text. Each piece
is tokenized after the end of the one before it, whose tokens are dropped again, because some tokenizers treat the
beginning of a text differently. Text without such places (scripts without spaces, tables of numbers) is cut at other
white space, or anywhere; there a token at the cut may differ from the whole text's, one in thousands.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from edgemllm.commands.perplexity.text import Text

PIECE = 8192
"""Characters tokenized together, at most twice that."""

CONTEXT = 64
"""Characters before the cut that a piece is tokenized with."""

CUTS = tuple(re.compile(pattern) for pattern in (r"(?<=[^\W\d_])(?= [^\W\d_])", r"(?<=\S)(?=\s)", r"(?<=\W)(?=\w)"))
"""Safe places, the safest first."""

Token = tuple[int, int]
"""A token's id, and how many bytes of the text it stands for."""


class TokenStream:
    """Tokens of a text as they are asked for. `loop`: the text begins again where it ends."""

    def __init__(self, text: Text, tokenizer: Any, loop: bool = False) -> None:
        self.loops = 0
        """How often the text was started again among the tokens given out."""
        self._waiting: deque[Token] = deque()
        self._batches = self._read(text, tokenizer, loop)

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """Return the next ids and the bytes of each; fewer than `count` at the end of the text only."""
        while len(self._waiting) < count and (batch := next(self._batches, None)) is not None:
            self._waiting.extend(batch)
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        return [token for token, _ in taken], [size for _, size in taken]

    def _read(self, text: Text, tokenizer: Any, loop: bool) -> Iterator[list[Token]]:
        yield [(token, 0) for token in beginning(tokenizer)]
        while True:
            any_text = False
            for context, piece in pieces(text.blocks()):
                tokens = tokenize(tokenizer, context, piece)
                any_text = any_text or bool(tokens)
                yield tokens
            if not (loop and any_text):
                return
            self.loops += 1


def pieces(blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return each piece of the text with the end of what was before it."""
    context = pending = ""
    for block in blocks:
        pending += block
        while len(pending) >= 2 * PIECE:
            cut = _cut(pending)
            yield context, pending[:cut]
            context, pending = pending[max(0, cut - CONTEXT) : cut], pending[cut:]
    if pending:
        yield context, pending


def _cut(text: str) -> int:
    for place in CUTS:
        found = place.search(text, PIECE, 2 * PIECE - 1)
        if found:
            return found.start()
    return PIECE


def tokenize(tokenizer: Any, context: str, piece: str) -> list[Token]:
    """Return the tokens of `piece`, which follows `context`."""
    before = _encode(tokenizer, context)[0] if context else []
    ids, ends = _encode(tokenizer, context + piece)
    if ids[: len(before)] != before:  # no boundary of tokens here, after all
        context, before = "", []
        ids, ends = _encode(tokenizer, piece)
    ids, ends = ids[len(before) :], [end - len(context) for end in ends[len(before) :]]
    if not ids:
        return []
    ends[-1] = len(piece)
    sizes, start = [], 0
    for end in ends:
        sizes.append(len(piece[start:end].encode()))
        start = max(start, end)
    return list(zip(ids, sizes, strict=True))


def beginning(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts in front of a text, such as `<s>`."""
    bare, whole = _encode(tokenizer, "a")[0], list(tokenizer("a")["input_ids"])
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the ids, and where in the text each one ends; evenly spread for tokenizers that do not say."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = list(found["input_ids"])
    if fast:
        return ids, [end for _, end in found["offset_mapping"]]
    return ids, [len(text) * number // len(ids) for number in range(1, len(ids) + 1)]
