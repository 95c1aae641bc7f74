"""Measure one press of kvpress, in its own environment (see kvpress.py), and print a JSON line like `edgemllm bench`.

python -m lab.measure.kvpress_cell CONFIG PRESS CONTEXT KEPT NEW_TOKENS REPEAT
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import time

import kvpress
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


@torch.inference_mode()
def main() -> None:
    """Prefill with the press, decode without, as kvpress's pipeline does; random weights and tokens."""
    path, press_name, context, kept, new_tokens, repeat = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
    with open(path) as file:
        config = LlamaConfig(**json.load(file))
    # Only eager attention returns the weights that this press scores with.
    config._attn_implementation = "eager" if press_name == "ObservedAttentionPress" else "sdpa"
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    press = getattr(kvpress, press_name)(compression_ratio=1 - kept / context)
    ids = torch.randint(0, config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    more = {"output_attentions": True} if config._attn_implementation == "eager" else {}
    first, decode = [], []
    for number in range(repeat + 1):
        cache = DynamicCache()
        prompt = ids[:, : 64 if number == 0 else context]  # the first round warms up
        press.compression_ratio = 0.0 if number == 0 else 1 - kept / context
        marks = [time.perf_counter()]
        with press(model):
            out = model(prompt, past_key_values=cache, logits_to_keep=1, **more)
        token = out.logits[:, -1:].argmax(-1)
        del out
        marks.append(time.perf_counter())
        for step in range(4 if number == 0 else new_tokens):
            place = torch.tensor([[prompt.shape[1] + step]])
            token = model(token, past_key_values=cache, position_ids=place).logits[:, -1:].argmax(-1)
            marks.append(time.perf_counter())
        if number:
            first.append((marks[1] - marks[0]) * 1e3)
            decode += [(later - earlier) * 1e3 for earlier, later in itertools.pairwise(marks[1:])]
    layers = [layer.keys.shape[2] for layer in cache.layers]
    found = {
        "policy": f"kvpress {press_name.removesuffix('Press')}",
        "context": context,
        "ttft_ms": statistics.median(first),
        "decode_ms": statistics.median(decode),
        "decode_ms_samples": decode,
        "kv_tokens": sum(layers) / len(layers),
        "kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
