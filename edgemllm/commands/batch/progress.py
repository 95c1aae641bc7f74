"""How far a batch is: on the live line, and as its exit code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edgemllm.screen import Display, status
from edgemllm.session import Session
from edgemllm.units import clock


class Progress:
    """Counts the lines of a run of `total` works."""

    def __init__(self, display: Display, total: int, device: str) -> None:
        self.display, self.total, self._device = display, total, device
        self.done = self.failed = self.code = 0
        """Lines, those with an error, and the highest exit code of these."""
        self.begin()

    def begin(self) -> None:
        """Start the clock: the model is loaded."""
        self._began = time.monotonic()

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line, and say what went wrong with it."""
        self.done += 1
        if line["error"] is not None:
            self.failed += 1
            self.code = max(self.code, line["exit_code"])
            self.display.say(f"{line['id']}: {line['error']}")
        elif line["warning"]:
            self.display.say(f"{line['id']}: warning: {line['warning']}")
        self.display.update(self.line)

    def step(self, session: Session) -> None:
        """Show the session of the work under way."""
        self.display.update(lambda: f"{self.line()}  {status(session, self._device)}")

    def line(self) -> str:
        """Return how many works are done, and how long the others will take at this rate."""
        left = self.total - self.done
        took = time.monotonic() - self._began
        rest = f"  about {clock(took / self.done * left)} left" if self.done and left else ""
        return f"{self.done}/{self.total}{f' ({self.failed} failed)' if self.failed else ''}{rest}"

    def close(self, resumable: bool) -> int:
        """Say how it ended, and return the exit code; `resumable`: the same command can continue."""
        self.display.clear()
        took = time.monotonic() - self._began
        rate = f", {took / self.done:.3g} s each" if self.done else ""
        again = "; the same command with --resume continues" if resumable and (self.failed or self.done < self.total) else ""
        failed = f", {self.failed} failed" if self.failed else ""
        self.display.say(f"{self.done} of {self.total} done in {clock(took)}{rate}{failed}{again}")
        return self.code
