"""A text in passages as it comes: some sentences each, with the place of their first character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgemllm.archive.index import Array, packed

LEAST, MOST = 16, 64
"""Tokens of a passage, and at most half as many again: a sentence is cut only where it is longer."""

MOMENT_S = 0.001
"""How long a subtitle lasts in the archive: a span is not empty."""

END = re.compile(r"[.!?][\"'”’)]*(?=\s)|\n+")


def said(seconds: float, text: str, keys: bytes) -> dict[str, Any]:
    """Return the passage of subtitles that came after the frame of that second: its place is the second, it has no line."""
    return {"first": seconds, "last": seconds + MOMENT_S, "line": 0, "time": seconds, "text": text, "keys": keys}


class Passages:
    """Cuts one text; `offset` and `line` say where its next character is.

    Two passages are to fit into the `room` for a second look.
    """

    def __init__(self, medium: int, room: int, offset: int = 0, line: int = 1) -> None:
        self.medium, self.room, self.offset, self.line = medium, room, offset, line
        self.size = min(max(room // 2, LEAST), MOST)
        self._text, self._ends, self._keys = "", np.zeros(0, int), np.zeros((0, 0, 0), np.float32)

    @property
    def place(self) -> dict[str, int]:
        """Return where what comes next begins: the arguments that continue there."""
        return {
            "medium": self.medium,
            "room": self.room,
            "offset": self.offset + len(self._text),
            "line": self.line + self._text.count("\n"),
        }

    def add(self, text: str, sizes: Sequence[int], keys: Array | None) -> list[dict[str, Any]]:
        """Take in text, the bytes of the next tokens and their keys (n, heads, D); return the passages to keep.

        Text may come before its tokens. The last passage may be short: it is kept as it is, and returned again, longer, when
        more has come.
        """
        self._text += text
        if keys is None:
            return []
        ends = (self._ends[-1] if len(self._ends) else 0) + np.cumsum(sizes, dtype=int)
        self._keys = np.concatenate([self._keys, keys]) if len(self._keys) else keys
        self._ends = np.concatenate([self._ends, ends])
        return list(self._cut())

    def _cut(self) -> Iterator[dict[str, Any]]:
        while len(self._ends) > self.size + self.size // 2:
            count = self._sentences()
            yield self._passage(count)
            self._drop(count)
        if len(self._ends):
            yield self._passage(len(self._ends))

    def _sentences(self) -> int:
        """Return how many tokens the next passage has: to the last end of a sentence that leaves it near its size."""
        raw = self._text.encode()
        low, high = (int(self._ends[count - 1]) for count in (self.size // 2, self.size + self.size // 4))
        ends = [low + len(found) for found in self._found(raw[low:high].decode("utf-8", "ignore"))]
        if not ends:
            return self.size
        return int(np.searchsorted(self._ends, ends[-1], side="left")) + 1

    @staticmethod
    def _found(text: str) -> list[bytes]:
        return [text[: match.end()].encode() for match in END.finditer(text)]

    def _passage(self, count: int) -> dict[str, Any]:
        text = self._text.encode()[: int(self._ends[count - 1])].decode("utf-8", "ignore")
        place = {"first": self.offset, "last": self.offset + len(text), "line": self.line, "time": None}
        return {**place, "text": text, "keys": packed(self._keys[:count])}

    def _drop(self, count: int) -> None:
        raw, end = self._text.encode(), int(self._ends[count - 1])
        gone = raw[:end].decode("utf-8", "ignore")
        self._text = self._text[len(gone) :]
        self._ends, self._keys = self._ends[count:] - len(gone.encode()), self._keys[count:]
        self.offset, self.line = self.offset + len(gone), self.line + gone.count("\n")
