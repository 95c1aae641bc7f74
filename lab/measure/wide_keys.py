"""Score a text with fewer bits by a model some of whose key channels are many times as wide as the others.

    python -m lab.measure.wide_keys --model SmolLM2-135M-Instruct.Q4_1.gguf --text novel.txt

Larger models have such channels (KVQuant, arXiv 2401.18079, figure 2), which leave few steps of a scale to the others of
their group. Here the slowest pair of channels that rotate together is widened in keys and narrowed in queries, in every head:
no product of theirs changes, and with all bits the model is the same. edgemllm evens channels before keys are quantised; `as
they are` does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from edgemllm import policies, session
from edgemllm.cache.bits import Channels, KVBits
from edgemllm.models import loading
from edgemllm.models.channels import channels
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session
from lab.measure import pages
from lab.measure.sides import perplexity

BITS = ("8", "k8v4", "4")


def widen(family: ModelFamily, times: float) -> None:
    """Multiply a pair of key channels of each head, and divide the same of its queries."""
    kv_heads, width = family.config.num_key_value_heads, family.config.head_dim
    pair = torch.tensor([width // 2 - 1, width - 1])
    for layer in family.text_model.layers:
        attn = layer.self_attn
        attn.k_proj.weight.view(kv_heads, width, -1)[:, pair] *= times
        attn.q_proj.weight.view(-1, width, family.config.hidden_size)[:, pair] /= times


def plain(family: ModelFamily) -> list[dict[str, Channels]]:
    """Return channels of mean 0 and width 1 for the keys of every layer, and those of values as they are."""
    shape = (1, family.config.num_key_value_heads, 1, family.config.head_dim)
    return [{**known, "keys": Channels(torch.zeros(shape), torch.ones(shape))} for known in channels(family)]


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--slots", type=int, default=768)
    parser.add_argument("--times", type=float, nargs="*", default=[1, 10, 30, 100])
    options = parser.parse_args()
    text, rows = options.text.read_text(encoding="utf-8"), []
    for times in options.times:
        family = loading.load(loading.locate(options.model))
        ids = family.tokenize(text)[: options.tokens]
        widen(family, times)

        def scored(bits: str, family: ModelFamily = family, ids: list[int] = ids) -> float:
            return perplexity(Session(family, policies.build("streaming-llm"), options.slots, 64, bits=KVBits.parse(bits)), ids)

        whole = scored("16")
        for bits in BITS:
            found = []
            for way in (channels, plain):
                vars(session)["channels"] = way
                found.append(scored(bits))
            rows.append((f"{times:g}", bits, *(f"{each:.2f} ({each / whole - 1:+.1%})" for each in found)))
        print(f"{times:g} times as wide, all bits: {whole:.2f}")
    print(pages.table(("times as wide", "bits", "perplexity", "as they are"), rows, left=["times as wide", "bits"]))


if __name__ == "__main__":
    main()
