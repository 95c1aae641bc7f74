"""Which frames of a source are taken: the first at or after each tick of a clock."""

from __future__ import annotations

import math

from edgemllm.errors import UsageError

EARLY_S = 1e-3
"""Containers round time stamps to milliseconds: a frame this much before its tick belongs to it."""


class Ticks:
    """Ticks every `interval` seconds from `start` on (0: every frame). Those that pass without a frame are not made up for."""

    def __init__(self, start: float, interval: float) -> None:
        self.start, self.interval = start, interval
        self._next = 0
        self._after = -math.inf

    def is_due(self, now: float) -> bool:
        """Return whether the frame at `now` seconds is the first at or after its tick."""
        if now < self.start - EARLY_S or now <= self._after:
            return False
        if not self.interval:
            return True
        tick = self._number(now)
        due = tick >= self._next
        self._next = max(self._next, tick + 1)
        return due

    def continue_after(self, seconds: float) -> None:
        """Take nothing up to `seconds`, and after it what would have been taken without a break."""
        self._after = seconds
        if self.interval:
            self._next = self._number(seconds) + 1

    def _number(self, now: float) -> int:
        return math.floor((now - self.start + EARLY_S) / self.interval)


def check_sampling(fps: float | None, start: float, end: float | None, max_frames: int | None) -> None:
    """Refuse options that mean nothing, whatever the video."""
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"--fps {fps:g} is no frame rate", "a number above 0, such as --fps 1")
    if start < 0:
        raise UsageError(f"--start {start:g} is before the start of the video", "a time from 0 upwards, such as 1:30")
    if end is not None and end <= start:
        raise UsageError(f"--end {end:g} is not after --start {start:g}", "choose a later --end")
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"--max-frames {max_frames} leaves nothing to see", "a number from 1 upwards")
