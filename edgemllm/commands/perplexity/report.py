"""What a perplexity run looks like on a terminal: two lines while it goes on, a table at the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgemllm.commands.perplexity.curve import START, perplexity
from edgemllm.commands.tables import aligned
from edgemllm.device import memory
from edgemllm.device.memory import human_bytes
from edgemllm.units import clock, short_count

if TYPE_CHECKING:
    from edgemllm.commands.perplexity.run import Run

BAR, COURSE = 16, 8
"""Widths: of the bar, and of the course of the perplexity beside it."""


def progress(run: Run, size: int | None, later: int) -> tuple[str, str]:
    """Two lines: where the run is, with speed and time left; and perplexity so far and lately, cache and memory.

    `size`: bytes of the text, where they are known; `later`: runs that follow this one.
    """
    sums, curve = run.sums, run.curve
    kv = run.session.kv()
    before = curve.points[-2] if len(curve.points) > 1 else START
    newest = curve.points[-1] if curve.points else run.point()
    window = perplexity(newest.nll - before.nll, newest.tokens - before.tokens)
    speed = sums.tokens / sums.seconds if sums.seconds else 0.0
    total = run.target or (round(sums.tokens * size / sums.bytes) if size and sums.bytes else None)
    place, left = f"{short_count(sums.tokens)} tokens", ""
    if total:
        done = min(1.0, sums.tokens / total)
        bar = "━" * round(BAR * done) + "╌" * (BAR - round(BAR * done))
        place = f"{bar} {done:4.0%}  {short_count(sums.tokens)}/{'' if run.target else '~'}{short_count(total)} tokens"
        left = f"  ETA {clock(((later + 1) * total - sums.tokens) / speed)}" if speed else ""
    return (
        f"{run.policy}  {place}  {speed:.0f} tok/s{left}",
        f"ppl {number(perplexity(sums.nll, sums.tokens), 4)}  "
        f"last {short_count(newest.tokens - before.tokens)} {number(window, 4)}"
        f"{course(run)}  kv {round(kv['tokens'])}/{kv['budget_tokens'] or '∞'} {human_bytes(kv['bytes'])}  "
        f"rss {human_bytes(memory.rss_bytes())}  chunk {run.session.chunk}",
    )


def course(run: Run) -> str:
    """The perplexity of the latest windows as small bars, each a twelfth higher or lower; empty before there are two."""
    points = [START, *run.curve.points][-COURSE - 1 :]
    means = [(b.nll - a.nll) / (b.tokens - a.tokens) for a, b in itertools.pairwise(points)]
    if len(means) < 2:
        return ""
    middle = sorted(means)[len(means) // 2]
    return " " + "".join("▁▂▃▄▅▆▇█"[round(min(7, max(0, 3 + (mean - middle) / math.log(13 / 12))))] for mean in means)


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
    lines = aligned(rows)
    compared = [run for run in runs if run["compare_full"] and run["compare_full"]["tokens"]]
    if compared:
        rows = [("against full", "tokens", "KL (nats)", "same top", "full's perplexity", "KL after eviction", "same top")]
        for run in compared:
            whole, after = run["compare_full"], run["compare_full"]["after_eviction"]
            rows.append((run["policy"], str(whole["tokens"]), *_agreement(whole), number(whole["full_perplexity"]),
                         *(_agreement(after) if after else ("-", "-"))))  # fmt: skip
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def _agreement(found: Mapping[str, Any]) -> tuple[str, str]:
    return "∞" if found["kl_nats"] is None else f"{found['kl_nats']:.4g}", f"{found['same_top']:.2%}"


def number(value: float | None, digits: int = 5) -> str:
    """So many digits; infinity where there is no number."""
    return "∞" if value is None else f"{value:.{digits}g}"
