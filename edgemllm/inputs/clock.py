"""Times as people write them."""

from __future__ import annotations

import re

from edgemllm.errors import UsageError


def parse_time(text: str) -> float:
    """Seconds of "90", "1:30", "00:01:30.5", "90s" or "1m30s"."""
    text = text.strip().lower()
    if re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text):
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
        return seconds
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if match and text:
        hours, minutes, seconds_text = match.groups()
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds_text or 0)
    raise UsageError(f"not a time: {text!r}", "write 90, 1:30, 00:01:30 or 1m30s")


def clock(seconds: float) -> str:
    """ "00:01:30" of 90 seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
