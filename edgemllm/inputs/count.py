"""Counts as people write them."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from edgemllm.errors import UsageError

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def parse_count(text: str, option: str = "") -> int:
    """4000000 of "4M", "4e6", "4_000_000" or "4000000"; `option` is named in the error."""
    word = text.strip().lower().replace("_", "")
    try:
        number = Decimal(word[:-1]) * _UNITS[word[-1]] if word[-1:] in _UNITS else Decimal(word)
        whole = number.is_finite() and number == number.to_integral_value() and number >= 1
    except InvalidOperation:
        whole = False
    if not whole:
        raise UsageError(f"{option} {text!r} is not a whole number from 1 upwards".strip(), "write 4000000, 4M, 250k or 1e6")
    return int(number)


def short_count(count: int) -> str:
    """ "1.25M" of 1 250 000: four digits at most."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)
