"""Decode and prefill next to llama.cpp and transformers: the same weights, context and threads, in processes that take turns.

    python -m lab.measure.neighbours SmolLM2-135M-Instruct.Q4_1.gguf --threads 1 --context 1k
    python -m lab.measure.neighbours random:smolvlm2-0.5b --sides none/float32,int4/float32

A side is `llama.cpp` (through `pip install xllamacpp`, for GGUF files alone), `stock` (transformers' model and DynamicCache in
float32) or edgemllm as QUANT/DTYPE, with `@POLICY` at the end another policy than streaming-llm. Each side decodes some
tokens in every round, in alternating order; one that waits does nothing. The first is what the others are divided by. With
--text, the perplexity of its first tokens, everything in the cache; llama.cpp's binding gives no probabilities of a prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from edgemllm.units import parse_count
from lab.measure import pages

SIDES = "llama.cpp,stock,none/float32,none/bfloat16,nf4/float32,int8/float32,int4/float32"
COLUMNS = ("", "prefill tok/s", "decode ms", "middle half", "least", "ratio of medians", "peak MiB", "perplexity")


class Neighbour:
    """A side in a process of its own."""

    def __init__(self, name: str, options: Any) -> None:
        about = {**vars(options), "side": name}
        command = [sys.executable, "-m", "lab.measure.neighbour_side", json.dumps(about)]
        self.name, self.decode = name, list[float]()
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)
        self.said = self.hear()

    def hear(self) -> Any:
        """Return what the side says next. Ends the program where it has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def turn(self, tokens: int) -> list[float]:
        """Let it decode, and return ms per token."""
        assert self.process.stdin is not None
        print(tokens, file=self.process.stdin, flush=True)
        found: list[float] = self.hear()
        return found

    def row(self, base: float) -> tuple[str, ...]:
        """Write its row, `base` being the first side's median."""
        low, _, high = statistics.quantiles(self.decode)
        middle = statistics.median(self.decode)
        peak, perplexity = self.turn(0)
        return (
            self.name, f"{self.said:.0f}", f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{min(self.decode):.1f}",
            f"{middle / base:.2f}", f"{peak / 2**20:.0f}", f"{perplexity:.2f}" if perplexity else "",
        )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sides", default=SIDES)
    parser.add_argument("--context", type=parse_count, default=1000)
    parser.add_argument("--budget", type=parse_count, default=2048, help="tokens per layer of edgemllm")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=8, help="decoded by each side in a round")
    parser.add_argument("--text", help="a file whose perplexity is measured")
    parser.add_argument("--text-tokens", type=parse_count, default=2000)
    options = parser.parse_args()
    sides = [Neighbour(name, options) for name in options.sides.split(",")]
    for number in range(options.rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            taken = side.turn(options.tokens)
            side.decode += taken if number else []  # the first round warms up
    base = statistics.median(sides[0].decode)
    print(f"{pages.machine()}, {options.threads} threads, context {options.context}\n")
    print(pages.table(COLUMNS, (side.row(base) for side in sides), left=[""]))


if __name__ == "__main__":
    main()
