"""The course of perplexity runs as a picture, in the style of Inf-MLLM's Fig. 5 (https://arxiv.org/abs/2409.09086)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemllm.commands import figures
from edgemllm.units import short_count

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
"""Okabe and Ito's, which colour-blind people can tell apart."""

SPAN = 20
"""The bold line shows the perplexity of the latest 1/SPAN of the whole run, the pale one of each stretch between points."""


def plot(runs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw a line for each policy: perplexity on a log axis, below it memory, below that speed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 7.5), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    longest = max((run["tokens"] for run in runs), default=0)
    for number, run in enumerate(runs):
        _draw(run, COLORS[number % len(COLORS)], longest, above, middle, below)
    for length in {run["trained_tokens"] for run in runs if run["trained_tokens"]}:
        if length < longest:
            above.axvline(length, color="black", linewidth=0.8, linestyle=":")
            above.annotate(f" trained length {length}", (length, 0.99), xycoords=("data", "axes fraction"), va="top", size=8)
    above.set(yscale="log", ylabel="perplexity")
    above.set_title(title, loc="left", fontsize="medium")
    if above.get_ylim()[1] < 4 * above.get_ylim()[0]:  # a flat line must look flat
        centre = math.sqrt(math.prod(above.get_ylim()))
        above.set_ylim(centre / 2, centre * 2)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=5, fontsize="small")
    middle.set(yscale="log", ylabel="MiB")
    middle.plot([], [], color="black", label="KV cache")
    middle.plot([], [], color="black", linestyle=":", label="process (RSS)")
    middle.legend(framealpha=0.9, edgecolor="none", ncols=2, fontsize="small", loc="center right")
    below.set(ylabel="tokens/s", xlabel="tokens", ylim=(0, None), xlim=(0, longest or None))
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = above.get_ylim()
    labelled = "23457" if high < 10 * low else "25"
    above.yaxis.set_major_formatter(plain)
    above.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in labelled else ""))
    middle.yaxis.set_major_formatter(plain)
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(round(value))))
    for axes in (above, middle, below):
        axes.grid(visible=True, which="major", linewidth=0.4, color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def _draw(run: Mapping[str, Any], color: str, longest: int, above: Any, middle: Any, below: Any) -> None:
    curve = run["curve"]
    tokens = [point["tokens"] for point in curve]
    pale, bold = [_value(point["window_perplexity"]) for point in curve], recent(curve, longest / SPAN)
    label = run["policy"] + (" (stopped)" if run["stopped"] else "")
    above.plot(tokens, pale, color=color, alpha=0.25, linewidth=0.8)
    above.plot(tokens, bold, color=color, linewidth=1.8, label=label, marker="." if len(curve) < 3 else "")
    if run["stopped"] and curve:
        above.plot(tokens[-1], bold[-1], color=color, marker="x", markersize=8, markeredgewidth=2)
    middle.plot(tokens, [point["kv_bytes"] / 2**20 for point in curve], color=color)
    middle.plot(tokens, [point["rss_bytes"] / 2**20 for point in curve], color=color, linestyle=":")
    below.plot(tokens, [point["tokens_per_s"] for point in curve], color=color, linewidth=1)


def recent(curve: Sequence[Mapping[str, Any]], span: float) -> list[float]:
    """Return, at each point, the perplexity of the `span` tokens before it, or of as many as there were."""
    found, start = [], 0
    sums = [(0, 0.0), *((point["tokens"], point["nll_nats"]) for point in curve)]
    for tokens, nll in sums[1:]:
        while sums[start + 1][0] <= tokens - span:
            start += 1
        before, earlier = sums[start]
        found.append(_value(math.exp(min(700.0, (nll - earlier) / (tokens - before))) if tokens > before else None))
    return found


def _value(value: float | None) -> float:
    return math.nan if value is None else value
