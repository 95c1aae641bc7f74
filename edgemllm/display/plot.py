"""The course of perplexity runs as a picture, in the style of Inf-MLLM's Fig. 5 (https://arxiv.org/abs/2409.09086)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemllm.errors import EdgeError, MissingError, UsageError

ENDINGS = (".png", ".svg", ".pdf")


def check(path: Path, option: str = "--plot") -> None:
    """Raise before a long run what would otherwise be found behind it: no matplotlib, no folder, no such format."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{option} needs matplotlib, which is not installed", "pip install 'edgemllm[plot]'")
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{option} {path}: the ending says no format", f"one of {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise MissingError(f"no folder {path.parent} for the plot", f"mkdir -p {path.parent}")


def plot(runs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """One line a policy: perplexity of each window on a log axis, below it memory, below that speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.2, 1.2))
    for run in runs:
        curve = run["curve"]
        tokens = [point["tokens"] for point in curve]
        label = run["policy"] + (" (stopped)" if run["stopped"] else "")
        (line,) = above.plot(tokens, _values(curve, "window_perplexity"), label=label, marker="." if len(curve) < 3 else "")
        color = line.get_color()
        middle.plot(tokens, [point["kv_bytes"] / 2**20 for point in curve], color=color)
        middle.plot(tokens, [point["rss_bytes"] / 2**20 for point in curve], color=color, linestyle=":")
        below.plot(tokens, [point["tokens_per_s"] for point in curve], color=color)
    trained = {run["trained_tokens"] for run in runs if run["trained_tokens"]}
    longest = max((run["tokens"] for run in runs), default=0)
    for length in trained:
        if length < longest:
            above.axvline(length, color="grey", linewidth=0.8, linestyle="--", label=f"trained length {length}")
    above.set(yscale="log", ylabel="perplexity", title=title)
    above.legend(fontsize="small")
    middle.set(yscale="log", ylabel="MiB (KV —, RSS ···)")
    below.set(ylabel="tokens/s", xlabel="tokens", ylim=(0, None))
    for axes in (above, middle, below):
        axes.grid(visible=True, which="major", linewidth=0.3)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise EdgeError(
            f"cannot write the plot {path}: {error.strerror}", "the same run with --json and another place"
        ) from error


def _values(curve: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float("nan") if point[name] is None else point[name] for point in curve]
