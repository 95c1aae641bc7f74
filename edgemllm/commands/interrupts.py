"""Ctrl-C and SIGTERM: the first ends what runs, in order; a second Ctrl-C ends the program. SIGUSR1 asks for a save."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from edgemllm.session import Session


T = TypeVar("T")


class Interrupts:
    """While active, signals stop the session at its next token or frame. `code` is the exit code they ask for.

    `saves`: take SIGUSR1 as the wish to save.
    """

    def __init__(self, saves: bool = False) -> None:
        self.session: Session | None = None
        self.code = 0
        self._saves, self._wanted = saves and hasattr(signal, "SIGUSR1"), False
        self._before: dict[int, object] = {}

    def asked(self) -> bool:
        """Return whether a signal came."""
        return self.code != 0

    def save_wanted(self) -> bool:
        """Return whether SIGUSR1 came since this was last called."""
        wanted, self._wanted = self._wanted, False
        return wanted

    def wait(self, call: Callable[[], T]) -> T | None:
        """Return what `call` does, which may wait for others; None as soon as a signal comes: nothing is to be finished."""
        session, self.session = self.session, None
        try:
            return None if self.code else call()
        except (KeyboardInterrupt, SystemExit):
            if not self.code:
                raise
            return None
        finally:
            self.session = session

    def __enter__(self) -> Interrupts:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
            if self._saves:
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._caught_save)
        except ValueError:  # not the main thread: whoever embeds us handles signals
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _caught(self, number: int, frame: FrameType | None) -> None:
        again = self.code != 0
        if again and number == signal.SIGTERM:
            return  # `timeout` sends it twice, and what the first began is to be finished
        self.code = 143 if number == signal.SIGTERM else 130
        if self.session is None and number == signal.SIGTERM:
            raise SystemExit(143)
        if self.session is None or again:
            raise KeyboardInterrupt
        self.session.stop()

    def _caught_save(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
