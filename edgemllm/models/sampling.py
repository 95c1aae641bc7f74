"""How the next token is chosen among logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """What is asked of an answer's tokens."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int = 0


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token of logits (1, V)."""
    if sampling.temperature <= 0:
        return int(logits.argmax(-1))
    chances = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ranked, order = chances.sort(dim=-1, descending=True)
        # A token stays if the ones before it have not yet filled top_p; the likeliest always stays.
        ranked[ranked.cumsum(-1) - ranked >= sampling.top_p] = 0
        chances = torch.zeros_like(chances).scatter(-1, order, ranked)
    return int(torch.multinomial(chances, 1, generator=generator))
