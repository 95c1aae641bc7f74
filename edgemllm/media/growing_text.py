"""A text that grows: what is there, then what comes, in whole lines, across truncation and rotation."""

from __future__ import annotations

import codecs
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgemllm.errors import MissingError, TextError, UsageError, opening
from edgemllm.media.feed import Notice
from edgemllm.media.pipe import BLOCK_BYTES, LOOK_S, Pipe
from edgemllm.media.text import not_text

LONGEST = 8192
"""Characters of a line that are held until its end comes; a longer one is given out in parts."""


class GrowingText:
    """A file that grows, a named pipe, or standard input (-), read as it is taken.

    A file is read from its beginning, then as it grows, indefinitely or until nothing came for `timeout` seconds; a pipe until
    its end. A file that is truncated or replaced (log rotation) is read on from the new beginning, and a notice says so.
    `place` is what `place` gave in an earlier run: the text continues after it.
    Raises MissingError for what is not there or is no text, before anything slow.
    """

    def __init__(self, source: str, timeout: float | None = None, place: Mapping[str, Any] | None = None) -> None:
        self.name = "standard input" if source == "-" else source
        self.source, self.timeout, place = source, timeout, place or {}
        self.line, self.byte = int(place.get("line", 0)), int(place.get("byte", 0))
        """Lines and bytes that were given out, of all that the stream has read."""
        self.offset = 0
        """Bytes of the current file that were given out."""
        self.notices: deque[Notice] = deque(maxlen=64)
        self.error: TextError | None = None
        self._pending, self._fresh = "", True
        self._ended = self._stopped = self._leaving = False
        self._decoded = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._came = time.monotonic()
        self._file: BinaryIO | None = None
        self._blocks = self._open(place if place.get("source") == self.name else {})

    def begin(self) -> None:
        """The clock of the silence starts now."""
        self._came = time.monotonic()

    @property
    def done(self) -> bool:
        """Nothing is left and nothing will come; `error` says why, if not because the text has ended."""
        return self._ended and not self._pending

    @property
    def waiting(self) -> bool:
        """Whether a whole line is there that was not given out."""
        return "\n" in self._pending

    def take(self, most: int, lines: float = math.inf) -> str:
        """The next whole lines: about `most` characters of them and at most `lines`; nothing where none came in time.

        A line longer than LONGEST comes in parts, and one that a rotation has cut off gets an end.
        """
        while not (self._ended or self._leaving or self._enough(most, lines)) and self._more():
            pass
        text = self._pending[: self._cut(most, lines)]
        self._pending = self._pending[len(text) :]
        self.line += text.count("\n")
        self.byte += len(text.encode())
        self.offset += len(text.encode())
        if self._leaving and not self._pending:
            self._leave()
            if text and not text.endswith("\n"):
                self.line += 1
                text += "\n"
        elif self.done and text and not text.endswith("\n"):
            self.line += 1
        if self._fresh and text:
            self._fresh, text = False, text.removeprefix("\ufeff")
        return text

    @property
    def place(self) -> dict[str, Any]:
        """Where the stream is, after what was given out."""
        inode = os.fstat(self._file.fileno()).st_ino if self._file is not None else None
        return {"source": self.name, "line": self.line, "byte": self.byte, "offset": self.offset, "inode": inode}

    def close(self) -> None:
        """Stop reading."""
        self._stopped = self._ended = True
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- what comes --------------------------------------------------------------------------------------------

    def _enough(self, most: int, lines: float) -> bool:
        """Whether there is no need to wait for more."""
        ends = self._pending.count("\n")
        return len(self._pending) >= LONGEST or ends >= lines or bool(ends and len(self._pending) >= most)

    def _cut(self, most: int, lines: float) -> int:
        """How many of the pending characters to give out."""
        window = self._pending[: max(most, LONGEST)]
        ends = [found.end() for found in re.finditer("\n", window)]
        fitting = [end for end in ends if end <= most] or ends[:1]
        if fitting:
            return fitting[min(len(fitting), int(min(lines, len(fitting)))) - 1]
        if len(window) >= LONGEST:
            space = window.rfind(" ", LONGEST // 2)
            return space if space > 0 else len(window)
        return len(window) if self._ended or self._leaving else 0

    def _more(self) -> bool:
        """Take in the next block; False where there is none yet, or where this file is at its end."""
        try:
            block = next(self._blocks, None)
            if block:
                self._came = time.monotonic()
                self._decoded += len(block)
                self._pending += self._decoder.decode(block)
                return True
            silent = self.timeout is not None and time.monotonic() - self._came > self.timeout
            if block is None or silent:
                self._ended = True
                self._pending += self._decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            self._pending += error.object[: error.start].decode()
            self.error, self._ended = not_text(error, self._decoded, self.name), True
        except OSError as error:
            self.error = TextError(f"{self.name} cannot be read any more: {error.strerror}", "--resume, once it can")
            self._ended = True
        return False

    def _open(self, place: Mapping[str, Any]) -> Iterator[bytes]:
        """Begin to read. Raises MissingError and UsageError where that is not possible."""
        if self.source == "-":
            if sys.stdin.isatty():
                raise UsageError("--text - reads a pipe, but standard input is a terminal", "journalctl -f | ...")
            return Pipe(sys.stdin.buffer).blocks(lambda: self._stopped)
        path = Path(self.source)
        with opening(path, MissingError):
            if not path.exists():
                raise MissingError(f"no text {path}", "a file, even if it is still empty, or - for standard input")
            if path.is_dir():
                raise MissingError(f"{path} is a folder, not a text", "name a file")
            if not path.is_file():
                print(f"waiting for somebody to write to {path}", file=sys.stderr, flush=True)
                return Pipe(open(path, "rb")).blocks(lambda: self._stopped)
            self._file = open(path, "rb")
            self._seek(place)
            return self._growing(path)

    def _seek(self, place: Mapping[str, Any]) -> None:
        """Go to where an earlier run was; where the file is no longer that one, to its beginning."""
        assert self._file is not None
        now = os.fstat(self._file.fileno())
        if not place.get("offset"):
            self._check()
        elif place["inode"] != now.st_ino or now.st_size < place["offset"]:
            self._notify("rotated" if place["inode"] != now.st_ino else "truncated")
        else:
            self.offset = self._decoded = self._file.seek(place["offset"])
            self._fresh = False

    def _check(self) -> None:
        """Refuse at once what does not begin as text."""
        assert self._file is not None
        begin = self._file.read(BLOCK_BYTES)
        self._file.seek(0)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(begin)
        except UnicodeDecodeError as error:
            raise not_text(error, len(begin), self.name) from error

    def _growing(self, path: Path) -> Iterator[bytes]:
        """Blocks of a file as it grows; an empty one where nothing came."""
        while not self._stopped and self._file is not None:
            if block := self._file.read(BLOCK_BYTES):
                yield block
            elif event := self._replaced(path):
                self._leaving = True
                self._event = event
                yield b""
            else:
                time.sleep(LOOK_S)
                yield b""

    def _replaced(self, path: Path) -> str:
        """What has happened to the file whose end was reached, if anything."""
        assert self._file is not None
        here = os.fstat(self._file.fileno())
        if here.st_size < self._file.tell():
            return "truncated"
        try:
            there = path.stat()
        except OSError:  # moved away, and the new one is not there yet
            return ""
        same = (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)
        return "" if same or here.st_size > self._file.tell() else "rotated"

    def _leave(self) -> None:
        """Begin with the new content, once all of the old one was given out."""
        assert self._file is not None
        self._notify(self._event)
        if self._event == "rotated":
            self._file.close()
            self._file = open(self.source, "rb")
        else:
            self._file.seek(0)
        self._decoder.reset()
        self._leaving, self._fresh, self.offset, self._decoded = False, True, 0, 0

    def _notify(self, event: str) -> None:
        what = "was replaced by another file" if event == "rotated" else "was truncated"
        text = f"{self.name} {what} after line {self.line:,}; reading continues at its beginning"
        self.notices.append(Notice(event, text, {"source": self.name, "line": self.line, "byte": self.byte}))
