"""Ctrl-C and SIGTERM: the first ends what runs, in order; a second Ctrl-C ends the program."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemllm.session import Session


class Interrupts:
    """While active, signals stop the session at its next token or frame. `code` is the exit code they ask for."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.code = 0
        self._before: dict[int, object] = {}

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.code != 0

    def __enter__(self) -> Interrupts:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
        except ValueError:  # not the main thread: whoever embeds us handles signals
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _caught(self, number: int, frame: FrameType | None) -> None:
        again = self.code != 0
        self.code = 143 if number == signal.SIGTERM else 130
        if self.session is None or again:
            if number == signal.SIGTERM:
                raise SystemExit(143)
            raise KeyboardInterrupt
        self.session.stop()
