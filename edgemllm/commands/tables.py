"""Tables as text: columns that line up on a terminal, and Markdown, which is also for reports. The first row is the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return a line per row: the columns `left` flush left, the others flush right."""
    widths = _widths(rows)
    return ["  ".join(_pad(row, widths, left)).rstrip() for row in rows]


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table, padded so that it also reads well as text; the first `left` columns flush left."""
    widths = _widths(rows)
    head, *lines = (f"| {' | '.join(_pad(row, widths, range(left)))} |" for row in rows)
    rule = "|".join("-" * (width + 1) + ("-" if column < left else ":") for column, width in enumerate(widths))
    return "\n".join([head, f"|{rule}|", *lines])


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _pad(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in pairs]
