"""edgemllm's side: the same prompts, as many tokens kept in each layer as kvpress kept, and how the outcomes compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.random_weights import byte_tokenizer
from edgemllm.session import Session
from lab.measure import policy
from lab.measure.parity.cases import CASES, LENGTHS, MODELS, VOCABULARY, Case, kept, prompt, runs

ROOM = 64
"""Slots beyond the prompt: the policy's minimum and the decoded tokens fit, so that nothing is evicted by need."""


@dataclass
class Compared:
    """How the outcomes of one case compare."""

    sets: int = 0
    same_sets: int = 0
    difference: float = 0.0
    """The largest of any logit at any step."""
    tokens: int = 0
    same_tokens: int = 0

    def add(self, sets: list[Tensor], logits: Tensor, other: dict[str, Any]) -> None:
        """Count one run: kept tokens (H, n) of each layer, and logits (steps + 1, V)."""
        for mine, theirs in zip(sets, other["kept"], strict=True):
            self.sets += len(mine)
            self.same_sets += int((mine == theirs).all(-1).sum())
        self.difference = max(self.difference, float((logits - other["logits"]).abs().max()))
        self.tokens += len(other["tokens"])
        self.same_tokens += int((logits[:-1].argmax(-1) == torch.tensor(other["tokens"])).sum())


def make_models(folder: Path) -> None:
    """Save random Llamas whose attention logits have a standard deviation of about 2; with stock 0.02 all scores are ties.

    q and k of 128 channels have a variance of 128 * 0.125 ** 2 = 2, and so has their scaled product.
    """
    for name, heads in MODELS.items():
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=heads, head_dim=32, max_position_embeddings=2048, initializer_range=0.125,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight)
        model.save_pretrained(folder / name)
        byte_tokenizer(config).save_pretrained(folder / name)


def answer(
    family: ModelFamily, ids: Tensor, case: Case, other: dict[str, Any], whole: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Read the prompt, keep as many tokens as `other` did, and take in its greedy tokens: kept tokens and logits."""
    chosen = policy.build(case.policy, f"positions={'cache' if case.rerotated else 'original'}")
    session = Session(family, chosen, len(ids) + ROOM, len(ids))
    logits = [session.feed(family.text(ids.tolist(), 0))[0]]
    for layer, theirs in zip(session.cache.with_slots, other["kept"], strict=True):
        chosen.compress(layer, theirs.shape[-1])
    sets = [kept(values, every) for values, every in zip(cached_values(session), whole, strict=True)]
    logits += [session.step(token)[0] for token in other["tokens"]]
    return sets, torch.stack(logits)


def cached_values(session: Session) -> list[Tensor]:
    """Give the live values (H, L, D) of each layer."""
    return [layer.values[0, :, : layer.length].clone() for layer in session.cache.with_slots]


@torch.inference_mode()
def compare(folder: Path, prompts: int, theirs: dict[str, Any]) -> dict[str, Compared]:
    """Run everything that `theirs` holds, and compare by case."""
    found = {case.name: Compared() for case in CASES}
    for name in MODELS:
        family = loading.load(loading.locate(str(folder / name)))
        for length in LENGTHS:
            for seed in range(prompts):
                ids = prompt(length, seed)
                full = Session(family, policy.build("full"), None, length)
                full.feed(family.text(ids.tolist(), 0))
                whole = cached_values(full)
                for run in runs(name, length, seed):
                    other = theirs[str(run)]
                    found[run.case.name].add(*answer(family, ids, run.case, other, whole), other)
    return found
