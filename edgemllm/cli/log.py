"""stderr as a log that may be lost: a full disk or a reader that has gone does not end the run that reports to it."""

from __future__ import annotations

import io
import os
from typing import Any, TextIO


class Log(io.FileIO):
    """The file under stderr. What can no longer be written is dropped."""

    replaced: TextIO
    """The stream before; it would close the descriptor when nobody holds it any more."""

    def write(self, data: Any) -> int:
        """Write as much as goes; from the first failure on, all of it goes nowhere."""
        try:
            return super().write(data) or 0
        except OSError:
            discard(self.fileno())
            return len(data)


def tolerant(stream: TextIO) -> TextIO:
    """Return the same stream over the same descriptor, for which a failing write is no error."""
    log = Log(stream.fileno(), "wb", closefd=False)
    log.replaced = stream
    return io.TextIOWrapper(io.BufferedWriter(log), encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def discard(descriptor: int) -> None:
    """Point a descriptor at nothing, so that what is still buffered does not raise again when Python ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
