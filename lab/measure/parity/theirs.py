"""kvpress' side, run in its own environment: what it keeps, its logits and its greedy tokens.

python -m lab.measure.parity.theirs MODELS PROMPTS OUT
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kvpress
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from lab.measure.parity.cases import LENGTHS, MODELS, STEPS, Case, kept, prompt, runs


def press_of(case: Case, share: float) -> Any:
    """Make the press of a case that keeps this share."""
    press = getattr(kvpress, case.press)(compression_ratio=1 - share, **case.options)
    return kvpress.KeyRerotationPress(press) if case.rerotated else press


def answer(model: Any, ids: Tensor, case: Case, share: float, whole: list[Tensor]) -> dict[str, Any]:
    """Read the prompt with the press and decode without, as kvpress' pipeline does. `whole`: each layer's values (H, N, D)."""
    cache = DynamicCache()
    with press_of(case, share)(model):
        logits = [model(ids[None], past_key_values=cache, logits_to_keep=1).logits[0, -1]]
    sets = [kept(layer.values[0], values) for layer, values in zip(cache.layers, whole, strict=True)]
    place = sets[0].shape[-1] if case.rerotated else len(ids)
    tokens = []
    for step in range(STEPS):
        tokens.append(int(logits[-1].argmax()))
        position = torch.tensor([[place + step]])
        logits.append(model(torch.tensor([tokens[-1:]]), past_key_values=cache, position_ids=position).logits[0, -1])
    return {"kept": sets, "logits": torch.stack(logits), "tokens": tokens}


@torch.inference_mode()
def main() -> None:
    disable_progress_bar()
    folder, prompts, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    found: dict[str, Any] = {"versions": {name: version(name) for name in ("kvpress", "torch", "transformers")}}
    for name in MODELS:
        model = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for length in LENGTHS:
            for seed in range(prompts):
                ids, cache = prompt(length, seed), DynamicCache()
                model(ids[None], past_key_values=cache, logits_to_keep=1)
                whole = [layer.values[0] for layer in cache.layers]
                found |= {str(run): answer(model, ids, run.case, run.share, whole) for run in runs(name, length, seed)}
    torch.save(found, out)


if __name__ == "__main__":
    main()
