"""Pictures of attention, its entropy, and of what a cache kept (Fig. 2 of arXiv 2409.09086 and of arXiv 2502.17599)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgemllm.commands import figures

if TYPE_CHECKING:
    from torch import Tensor

    from edgemllm.commands.inspect.watch import Kept, LayerEntropy

ELSEWHERE = "another folder for --out"


def attention(maps: Mapping[int, Tensor], vision: Tensor, path: Path) -> None:
    """Draw a map for each layer, whose row i is what token i looked at, on a log scale; the strip above says what is video."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(maps) + 0.6, 4.9), layout="constrained")
    panels = figure.subplots(2, len(maps), squeeze=False, height_ratios=(1, 30), sharex=True)
    for column, (layer, weights) in enumerate(maps.items()):
        strip, axes = panels[0][column], panels[1][column]
        strip.imshow(vision[None].float(), aspect="auto", cmap="Blues", vmin=0, vmax=1.4)
        strip.set(yticks=[], title=f"layer {layer} (blue: video)")
        shown = axes.imshow(
            weights.clamp_min(1e-5), norm=LogNorm(1e-4, 1), cmap="magma", aspect="auto", interpolation="nearest"
        )
        axes.set(xlabel="looked at (token)", ylabel="looking (token)" if column == 0 else "")
    figure.colorbar(shown, ax=panels[1].tolist(), label="attention, mean of heads", shrink=0.8)
    figures.save(figure, path, ELSEWHERE)


def entropy(found: Sequence[LayerEntropy], path: Path) -> None:
    """Draw the entropy of attention by layer: of all of it, and across text and video."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    layers = range(len(found))
    axes.plot(layers, [each.own for each in found], marker="o", label="self-attention")
    if any(each.cross is not None for each in found):
        axes.plot(layers, [each.cross or 0.0 for each in found], marker="s", label="text to video + video to text")
    axes.axhline(found[0].most, color="grey", linewidth=0.8, linestyle="--", label="attention to everything alike")
    axes.set(xlabel="layer", ylabel="entropy, nats", ylim=(0, None), xticks=list(layers) if len(found) < 40 else None)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small")
    figures.save(figure, path, ELSEWHERE)


def kept(runs: Mapping[str, Kept], path: Path) -> None:
    """Draw for each policy which tokens were in the cache when: time goes down, the stream to the right."""
    import torch
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(runs) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        shown = axes.pcolormesh(
            [run.length * edge / len(run.rows[0]) for edge in range(len(run.rows[0]) + 1)],
            [0, *run.seen], torch.stack(run.rows).numpy(), cmap="viridis", vmin=0, vmax=1,
        )  # fmt: skip
        axes.set(title=name, xlabel="token of the stream")
    panels[0].set_ylabel("tokens seen")
    panels[0].invert_yaxis()
    figure.colorbar(shown, ax=panels.tolist(), label="share of layers and heads that hold it", shrink=0.8)
    figures.save(figure, path, ELSEWHERE)
