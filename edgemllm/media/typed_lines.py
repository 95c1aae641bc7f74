"""Lines that are typed or piped while something else runs."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from typing import TextIO

WAITING = 64
"""Lines that may wait; more are left in the pipe."""
BACKGROUND_S = 1.0


class TypedLines:
    """Reads a stream line by line in a thread; `take` never waits."""

    def __init__(self, stream: TextIO) -> None:
        self.interactive = stream.isatty()
        self.ended = False
        self._lines: queue.Queue[str] = queue.Queue(WAITING)
        if self.interactive and hasattr(signal, "SIGTTIN") and threading.current_thread() is threading.main_thread():
            # A job put into the background (`&`) would be stopped as a whole by reading the terminal.
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        self._thread = threading.Thread(target=self._run, args=(stream,), name="lines", daemon=True)
        self._thread.start()

    def take(self) -> str | None:
        """Return the next line, stripped; None if there is none yet. An empty line comes as one on a terminal only."""
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def settle(self, seconds: float) -> None:
        """Give what is already in the pipe time to arrive."""
        self._thread.join(seconds)

    def _run(self, stream: TextIO) -> None:
        try:
            # A file of our own: the interpreter's cannot be closed at the end while this thread still reads it.
            own = os.fdopen(os.dup(stream.fileno()), encoding="utf-8", errors="replace")
        except (OSError, ValueError):  # replaced by an embedding program
            self._read(stream)
        else:
            with own:
                self._read(own)
        self.ended = True

    def _read(self, stream: TextIO) -> None:
        while True:
            try:
                line = stream.readline()
            except OSError:  # a terminal, while we are in the background
                time.sleep(BACKGROUND_S)
                continue
            except ValueError:  # closed
                return
            if not line:
                return
            if line.strip() or self.interactive:
                self._lines.put(line.strip())
