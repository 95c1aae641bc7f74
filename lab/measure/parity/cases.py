"""What both sides run. Either imports this, so it imports neither edgemllm nor kvpress."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

MODELS = {"gqa": 2, "mha": 4}
"""Names of the models, and their KV heads; all have 4 layers and 4 query heads."""
VOCABULARY, STEPS = 1024, 20
LENGTHS, SHARES = (200, 333, 600), (0.5, 0.25)


class Case(NamedTuple):
    """One method on both sides, with equal parameters."""

    name: str
    press: str
    options: dict[str, Any]
    policy: str
    rerotated: bool = False
    """Survivors are renumbered: KeyRerotationPress there, our default `positions=cache` here."""


SNAPKV = "snapkv/window=32/kernel=5"
CASES = (
    Case("SnapKV, window 32, kernel 5", "SnapKVPress", {"window_size": 32, "kernel_size": 5}, SNAPKV),
    Case("SnapKV, window 32, kernel 7", "SnapKVPress", {"window_size": 32, "kernel_size": 7}, "snapkv/window=32/kernel=7"),
    Case("StreamingLLM, 4 sinks", "StreamingLLMPress", {"n_sink": 4}, "streaming-llm/sinks=4"),
    Case("KeyRerotation(SnapKV)", "SnapKVPress", {"window_size": 32, "kernel_size": 5}, SNAPKV, rerotated=True),
    Case("KeyRerotation(StreamingLLM)", "StreamingLLMPress", {"n_sink": 4}, "streaming-llm/sinks=4", rerotated=True),
    Case(
        "PyramidKV, window 8, beta 20",
        "PyramidKVPress",
        {"window_size": 8, "kernel_size": 5, "beta": 20},
        "pyramidkv/window=8/kernel=5/beta=20",
    ),
)


class Run(NamedTuple):
    """One prompt under one case, at one share of kept tokens."""

    model: str
    length: int
    seed: int
    case: Case
    share: float

    def __str__(self) -> str:
        return f"{self.model} {self.length} {self.seed} {self.case.name} {self.share}"


def runs(model: str, length: int, seed: int) -> Iterator[Run]:
    """Return everything that is done with one prompt."""
    for case, share in itertools.product(CASES, SHARES):
        yield Run(model, length, seed, case, share)


def prompt(length: int, seed: int) -> Tensor:
    """Draw tokens (n,). None comes twice, so that no two rows of a layer's values are alike."""
    return torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[:length]


def kept(values: Tensor, whole: Tensor) -> Tensor:
    """Return which of the prompt's tokens, (H, n) ascending, survived: found by their values (H, n, D) among all, (H, N, D)."""
    return torch.cdist(values, whole).argmin(-1).sort(-1).values
