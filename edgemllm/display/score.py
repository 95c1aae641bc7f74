"""What a perplexity run looks like on a terminal: one line while it goes on, a table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgemllm.device import memory
from edgemllm.device.memory import human_bytes
from edgemllm.inputs.clock import clock
from edgemllm.inputs.count import short_count
from edgemllm.runs.curve import Point, perplexity

if TYPE_CHECKING:
    from edgemllm.runs.perplexity import Run


def progress(run: Run, size: int | None, later: int) -> str:
    """Tokens, perplexity so far and over the last window, cache, memory, speed, time left.

    `size`: bytes of the text, where they are known; `later`: runs that follow this one.
    """
    sums, curve = run.sums, run.curve
    kv = run.session.kv()
    before = curve.points[-2] if len(curve.points) > 1 else Point(0, 0.0, 0, 0.0, 0, 0)
    newest = curve.points[-1] if curve.points else run.point()
    window = perplexity(newest.nll - before.nll, newest.tokens - before.tokens)
    speed = sums.tokens / sums.seconds if sums.seconds else 0.0
    total = run.target or (round(sums.tokens * size / sums.bytes) if size and sums.bytes else None)
    left = f"  ETA {clock(((later + 1) * total - sums.tokens) / speed)}" if total and speed else ""
    about = "" if run.target else "~"
    return (
        f"{run.policy}  {short_count(sums.tokens)}{f'/{about}{short_count(total)}' if total else ''} tokens  "
        f"ppl {number(perplexity(sums.nll, sums.tokens))} (last {short_count(newest.tokens - before.tokens)}: "
        f"{number(window)})  kv {round(kv['tokens'])}/{kv['budget_tokens'] or '∞'} {human_bytes(kv['bytes'])}  "
        f"rss {human_bytes(memory.rss_bytes())}  {speed:.0f} tok/s{left}"
    )


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row a run."""
    rows: list[tuple[str, ...]] = [
        ("policy", "tokens", "perplexity", "last 10 %", "bits/byte", "kv tokens", "kv bytes", "chunk", "tok/s")
    ]
    for run in runs:
        kv = run["kv"]
        figures = [number(run[name]) for name in ("perplexity", "last_tenth_perplexity", "bits_per_byte")]
        cache = [f"{kv['tokens']:g}", human_bytes(kv["bytes"]), str(run["chunk"])]
        rows.append((run["policy"], str(run["tokens"]), *figures, *cache, f"{run['tokens_per_s']:.0f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def number(value: float | None) -> str:
    """Five digits; infinity where there is no number."""
    return "∞" if value is None else f"{value:.5g}"
