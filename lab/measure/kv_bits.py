"""Time a decoded token with keys and values in 16, 8 and 4 bits, in turn, by one process with one model and text.

    python -m lab.measure.kv_bits --model SmolLM2-135M-Instruct.Q4_1.gguf --text novel.txt --slots 2048 --dtype bfloat16

Prints medians of the thread's own time, and their ratio to 16 bits: what other programs take meanwhile does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from edgemllm import policies
from edgemllm.cache.bits import KVBits
from edgemllm.cache.policy import CachePolicy
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session
from lab.measure import pages

BITS = ("16", "8", "k8v4", "4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--policy", default="streaming-llm", help="`full`: the cache holds --slots tokens and grows")
    parser.add_argument("--slots", type=int, default=2048)
    parser.add_argument("--quant", default="none")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = loading.load(loading.locate(options.model), options.quant, options.dtype)
    policy = policies.build(options.policy)
    more = 64 if policy.bounded else 0  # the cache has been full once
    ids = family.tokenize(options.text.read_text(encoding="utf-8"))[: options.slots + more]
    sessions = {bits: filled(family, policy, options.slots, ids, bits) for bits in BITS}
    times: dict[str, list[float]] = {bits: [] for bits in BITS}
    for _ in range(options.turns):
        for bits, session in sessions.items():
            began = time.thread_time()
            session.step(ids[0])
            times[bits].append(1e3 * (time.thread_time() - began))
    medians = {bits: statistics.median(found) for bits, found in times.items()}
    rows = [
        [bits, f"{medians[bits]:.1f}", f"{medians[bits] / medians['16']:.2f}", f"{sessions[bits].kv()['bytes']:,}"]
        for bits in BITS
    ]
    print(pages.table(["bits", "ms per token", "of 16 bits", "KV bytes"], rows, left=["bits"]))


def filled(family: ModelFamily, policy: CachePolicy, slots: int, ids: list[int], bits: str) -> Session:
    """Return a session that has read the tokens."""
    session = Session(family, policy, slots if policy.bounded else None, 128, bits=KVBits.parse(bits))
    session.feed(family.text(ids, 0))
    return session


if __name__ == "__main__":
    main()
