"""Times and counts as people write them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from edgemllm.errors import UsageError

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


MOST = 10**18
"""Above every count of tokens: such a number is a slip."""


def parse_time(text: str) -> float:
    """Return the seconds of "90", "1:30", "00:01:30.5", "90s" or "1m30s"."""
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


def parse_time_or_lines(text: str) -> tuple[float, bool]:
    """Return seconds and False, or the number of "1000lines" or "10k lines" and True."""
    lines = re.fullmatch(r"(.*\w)\s*lines?", text.strip().lower())
    return (float(parse_count(lines[1])), True) if lines else (parse_time(text), False)


def clock(seconds: float) -> str:
    """Write 90 seconds as "00:01:30"."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def parse_count(text: str, option: str = "") -> int:
    """Return 4000000 for "4M", "4e6", "4_000_000" or "4000000"; `option` is named in the error."""
    word = text.strip().lower().replace("_", "")
    try:
        number = Decimal(word[:-1]) * _UNITS[word[-1]] if word[-1:] in _UNITS else Decimal(word)
        whole = number.is_finite() and number == number.to_integral_value() and 1 <= number < MOST
    except InvalidOperation:
        whole = False
    if not whole:
        raise UsageError(f"{option} {text!r} is not a whole number from 1 to 10^18".strip(), "write 4000000, 4M, 250k or 1e6")
    return int(number)


def short_count(count: int) -> str:
    """Write 1,250,000 as "1.25M": four digits at most."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)
