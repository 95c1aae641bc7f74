"""Bytes of a pipe, read by a thread: one that stalls in the middle holds nobody up."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any, BinaryIO

from edgemllm.errors import EdgeError

BLOCK_BYTES = 1 << 16
WAITING = 4
"""Blocks that are read ahead."""
LOOK_S = 0.1
"""Time between two looks whether the reading is to stop."""


def never() -> bool:
    """Return whether to stop reading, where nobody can ask for it."""
    return False


class Pipe:
    """Standard input, a named pipe or another stream without length, as blocks of what came.

    `again`: what was read is kept on disk (not in memory), because it will be read more than once.
    """

    def __init__(self, stream: BinaryIO, again: bool = False) -> None:
        self.stream = stream
        self.name = "standard input" if stream is getattr(sys.stdin, "buffer", None) else str(getattr(stream, "name", "a pipe"))
        self.kept: Any = None
        if again:
            self.kept = tempfile.TemporaryFile()
            weakref.finalize(self, self.kept.close)
        self._read: queue.Queue[bytes | OSError] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._ended = False

    def blocks(self, stopped: Callable[[], bool] = never) -> Iterator[bytes]:
        """Return what was read before, then what is still to come, until the end or until `stopped` says so.

        An empty block says that nothing came for LOOK_S. Raises OSError where the stream cannot be read.
        """
        offset = 0
        while not stopped():
            block = b""
            if self.kept is not None:
                self.kept.seek(offset)
                block = self.kept.read(BLOCK_BYTES)
            if not block:
                if self._ended:
                    return
                block = self._next()
                if block and self.kept is not None:
                    self._keep(block)
            offset += len(block)
            yield block

    def _next(self) -> bytes:
        """Return what came next, nothing where that takes longer than LOOK_S or the stream has ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pipe", daemon=True)
            self._thread.start()
        try:
            block = self._read.get(timeout=LOOK_S)
        except queue.Empty:
            return b""
        if isinstance(block, OSError):
            raise block
        self._ended = not block
        return block

    def _run(self) -> None:
        try:
            # A file of our own: the interpreter's cannot be closed at the end while this thread still reads it.
            own: Any = FileIO(os.dup(self.stream.fileno()))
        except (AttributeError, OSError, ValueError):  # replaced by an embedding program
            own = self.stream
        try:
            while block := own.read(BLOCK_BYTES):
                self._read.put(block)
            self._read.put(b"")
        except OSError as error:
            self._read.put(error)

    def _keep(self, block: bytes) -> None:
        try:
            self.kept.seek(0, 2)
            self.kept.write(block)
            self.kept.flush()
        except OSError as error:
            raise EdgeError(
                f"{self.name} is read more than once and its copy in {tempfile.gettempdir()} fails: {error.strerror}",
                "one policy, no --loop, and no --compare-full; or --text FILE; or TMPDIR with more space",
            ) from error
