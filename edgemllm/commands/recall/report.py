"""Recall as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemllm.commands import figures
from edgemllm.commands.tables import markdown

HEAD = (
    *("policy", "KV", "tokens", "between", "asked"),
    *("old facts", "recent", "never shown: refused", "shown: refused", "held", "against"),
)


def percent(found: Mapping[str, Any] | None) -> str:
    """Return a share with its standard error, both in percent."""
    if not found or found["share"] is None:
        return "–"
    error = f" ± {100 * found['error']:.0f}" if found["error"] is not None else ""
    return f"{100 * found['share']:.0f}{error}"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with shares in percent: what a terminal shows and a report takes over."""
    rows = [
        (
            f"{run['policy']} (reference)" if run["reference"] else run["policy"],
            run["kv_budget"] or "all",
            str(run["kv_budget_tokens"] or "∞"),
            run["between"],
            run["protocol"],
            percent(run["old"]),
            percent(run["recent"]),
            percent(run["refused_unseen"]),
            percent(run["refused_told"]),
            "–" if run["held"] is None else f"{100 * run['held']:.0f}",
            _difference(run["against"]),
        )
        for run in runs
    ]
    return markdown([HEAD, *rows], left=len(HEAD))


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found or found["difference"] is None or found["error"] is None:
        return "–"
    return f"{100 * found['difference']:+.0f} ± {100 * found['error']:.0f}"


def _line(axes: Any, run: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draw one policy; the reference is a thick grey line, the same in the panel of every budget."""
    points = [point for point in run["by_distance"] if point["share"] is not None]
    number = names.index(run["policy"])
    style: dict[str, Any] = {
        "label": run["policy"], "color": f"C{number % 10}", "marker": "o" if number < 10 else "s",
        "linestyle": {"oracle": ":", "random": ":", "window": "--"}.get(run["policy"], "-"), "linewidth": 1.4,
    }  # fmt: skip
    if run["reference"]:
        style |= {"label": f"{run['policy']} (reference)", "color": "0.6", "linestyle": "-", "linewidth": 3, "zorder": 0}
    axes.errorbar(
        [point["distance_tokens"] for point in points],
        [100 * point["share"] for point in points],
        yerr=[100 * (point["error"] or 0) for point in points],
        elinewidth=0.6, markersize=3, **style,
    )  # fmt: skip


def plot(runs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw recall over distance, a line for each policy and a panel for every budget and kind of footage."""
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(run["kv_budget"] for run in runs if not run["reference"])) or [None]
    kinds = list(dict.fromkeys((run["between"], run["protocol"]) for run in runs))
    names = list(dict.fromkeys(run["policy"] for run in runs))
    figure = Figure(figsize=(4.2 * len(kinds) + 1.6, 2.8 * len(budgets) + 0.6), layout="constrained")
    panels = figure.subplots(len(budgets), len(kinds), sharex=True, sharey=True, squeeze=False)
    for run in runs:
        for budget in budgets if run["reference"] else [run["kv_budget"]]:
            _line(panels[budgets.index(budget)][kinds.index((run["between"], run["protocol"]))], run, names)
    for row, budget in zip(panels, budgets, strict=True):
        for axes, (between, protocol) in zip(row, kinds, strict=True):
            axes.set_title(f"{between}, asked: {protocol}, KV {budget or 'all'}", fontsize="small")
            axes.grid(visible=True, linewidth=0.3)
            axes.set_ylim(-3, 103)
    for row in panels:
        row[0].set_ylabel("recall, %")
    for axes in panels[-1]:
        axes.set_xlabel("tokens between fact and question")
    figure.suptitle(title, fontsize="medium")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figures.save(figure, path)
