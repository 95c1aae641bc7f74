"""The terminal's echo: what is typed while an answer is written must not land in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_echo(stream: Any = None) -> Iterator[None]:
    """Keep what is typed off the screen; it waits in the terminal as the next input.

    Nothing happens where standard input is no terminal, or belongs to another job: changing it would stop this one. The
    echo comes back however the block ends.
    """
    try:
        import termios

        terminal = (stream or sys.stdin).fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, AttributeError, OSError, ValueError, termios.error):
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO

    def become(state: list[Any]) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal has gone
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSADRAIN, state)

    become(silent)
    try:
        yield
    finally:
        become(before)
