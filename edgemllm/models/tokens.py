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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edgemllm.media.pipe import never
from edgemllm.media.text import Text

PIECE = 8192
"""Characters tokenized together, at most twice that."""

CONTEXT = 64
"""Characters before the cut that a piece is tokenized with."""

CUTS = tuple(re.compile(pattern) for pattern in (r"(?<=[^\W\d_])(?= [^\W\d_])", r"(?<=\S)(?=\s)", r"(?<=\W)(?=\w)"))
"""Safe places, the safest first."""

Token = tuple[int, int, int]
"""A token's id, and how many bytes and line ends of the text it stands for."""


class TokenStream:
    """Tokens of a text as they are asked for, until `stopped`. `loop`: the text begins again where it ends."""

    def __init__(self, text: Text, tokenizer: Any, loop: bool = False, stopped: Callable[[], bool] = never) -> None:
        self.stopped = stopped
        self.loops = 0
        """How often the text was started again among the tokens given out."""
        self._waiting: deque[Token] = deque()
        self._batches = self._read(text, tokenizer, loop)

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """Return the next ids and the bytes of each; fewer than `count` at the end of the text, or once stopped."""
        while len(self._waiting) < count and (batch := next(self._batches, None)) is not None:
            self._waiting.extend(batch)
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        return [token for token, _, _ in taken], [size for _, size, _ in taken]

    def _read(self, text: Text, tokenizer: Any, loop: bool) -> Iterator[list[Token]]:
        yield [(token, 0, 0) for token in beginning(tokenizer)]
        while True:
            any_text = False
            for context, piece in pieces(text.blocks(self.stopped)):
                tokens = tokenize(tokenizer, context, piece)
                any_text = any_text or bool(tokens)
                yield tokens
            if not (loop and any_text) or self.stopped():
                return
            self.loops += 1


def pieces(blocks: Iterable[str], size: int | None = None) -> Iterator[tuple[str, str]]:
    """Return each piece of the text, of `size` (PIECE) to 2 * size characters, with the end of what was before it."""
    size = size or PIECE
    context = pending = ""
    for block in blocks:
        pending += block
        while len(pending) >= 2 * size:
            cut = safe_cut(pending, size)
            yield context, pending[:cut]
            context, pending = end_of(context, pending[:cut]), pending[cut:]
    if pending:
        yield context, pending


def end_of(context: str, piece: str) -> str:
    """Return the context of what follows a piece."""
    return (context + piece)[-CONTEXT:]


def safe_cut(text: str, size: int) -> int:
    """Return where to cut a text of 2 * size characters, or more."""
    for place in CUTS:
        found = place.search(text, size, 2 * size - 1)
        if found:
            return found.start()
    return size


def tokenize(tokenizer: Any, context: str, piece: str, special: bool = True) -> list[Token]:
    """Return the tokens of `piece`, which follows `context`; not `special`: the names of special tokens are text."""
    before = _encode(tokenizer, context, special)[0] if context else []
    ids, ends = _encode(tokenizer, context + piece, special)
    if ids[: len(before)] != before:  # no boundary of tokens here, after all
        context, before = "", []
        ids, ends = _encode(tokenizer, piece, special)
    ids, ends = ids[len(before) :], [end - len(context) for end in ends[len(before) :]]
    if not ids:
        return []
    ends[-1] = len(piece)
    tokens, start = [], 0
    for token, end in zip(ids, ends, strict=True):
        part = piece[start:end]
        tokens.append((token, len(part.encode()), part.count("\n")))
        start = max(start, end)
    return tokens


def beginning(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts in front of a text, such as `<s>`."""
    bare, whole = _encode(tokenizer, "a")[0], list(tokenizer("a")["input_ids"])
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _encode(tokenizer: Any, text: str, special: bool = True) -> tuple[list[int], list[int]]:
    """Return the ids, and where in the text each one ends; evenly spread for tokenizers that do not say."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    kinds = {} if special else {"split_special_tokens": True}
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False, **kinds)
    ids = list(found["input_ids"])
    if fast:
        return ids, [end for _, end in found["offset_mapping"]]
    return ids, [len(text) * number // len(ids) for number in range(1, len(ids) + 1)]
