"""The terminal's echo: what is typed while a model loads, watches or answers must not land in what is drawn."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def no_echo(stream: Any = None) -> Iterator[Callable[[bool], None]]:
    """Keep what is typed off the screen; it waits in the terminal as the next input.

    What this gives switches the echo on, for a prompt, and off again. Nothing happens where standard input is no terminal,
    or belongs to another job: changing it would stop this one. The echo comes back however the block ends.
    """
    try:
        import termios

        terminal = (stream or sys.stdin).fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, AttributeError, OSError, ValueError, termios.error):
        yield lambda shown: None
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO

    def switch(shown: bool) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal has gone
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSADRAIN, before if shown else silent)

    try:
        switch(False)
        yield switch
    finally:
        switch(True)
