"""Decode and prefill next to llama.cpp and transformers: the same weights, context and threads, in processes that take turns.

    python -m lab.measure.neighbours SmolLM2-135M-Instruct.Q4_1.gguf --threads 1,2 --context 1k
    python -m lab.measure.neighbours random:smolvlm2-0.5b --sides none/float32,int4/float32

A side is `llama.cpp` (through `pip install xllamacpp`, for GGUF files alone; with `@FILE` at the end, on another file), `stock`
(transformers' model and DynamicCache in float32) or edgemllm as QUANT/DTYPE, with `@POLICY` at the end another policy than
streaming-llm. Each side decodes some tokens in every round, in alternating order, and their mean is one value; one that waits
does nothing. The first is what the others are divided by. With --text, the perplexity of its first tokens, everything in the
cache; llama.cpp's through `pip install cyllama`, where that is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgemllm.units import parse_count
from lab.measure import pages

SIDES = "llama.cpp,stock,none/float32,none/bfloat16,nf4/float32,int8/float32,int4/float32"
COLUMNS = ("", "prefill tok/s", "decode ms", "middle half", "least", "ratio of medians", "of least", "peak MiB", "perplexity")


class Neighbour:
    """A side in a process of its own."""

    def __init__(self, name: str, options: Any, threads: int) -> None:
        about = {**vars(options), "side": name, "threads": threads}
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

    def turn(self, tokens: int) -> Any:
        """Let it decode, and return ms per token; 0: what it says at the end."""
        assert self.process.stdin is not None
        print(tokens, file=self.process.stdin, flush=True)
        return self.hear()

    def row(self, first: Neighbour) -> tuple[str, ...]:
        """Write its row, beside the first side."""
        low, _, high = statistics.quantiles(self.decode)
        middle = statistics.median(self.decode)
        peak, perplexity = self.turn(0)
        name, at, after = self.name.partition("@")
        of_medians, of_least = middle / statistics.median(first.decode), min(self.decode) / min(first.decode)
        return (
            name + at + Path(after).name, f"{self.said:.0f}",
            f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{min(self.decode):.1f}",
            f"{of_medians:.2f}", f"{of_least:.2f}", f"{peak / 2**20:.0f}", f"{perplexity:.2f}" if perplexity else "",
        )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sides", default=SIDES)
    parser.add_argument("--context", type=parse_count, default=1000)
    parser.add_argument("--budget", type=parse_count, default=2048, help="tokens per layer of edgemllm")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--threads", default="1", help="one table for each number")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=8, help="decoded by each side in a round")
    parser.add_argument("--text", help="a file whose perplexity is measured")
    parser.add_argument("--text-tokens", type=parse_count, default=2000)
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        sides = [Neighbour(name, options, threads) for name in options.sides.split(",")]
        for number in range(options.rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                taken = side.turn(options.tokens)
                side.decode += [taken] if number else []  # the first round warms up
        print(f"{pages.machine()}, {threads} threads, context {options.context}\n")
        print(pages.table(COLUMNS, (side.row(sides[0]) for side in sides), left=[""]), "\n", flush=True)


if __name__ == "__main__":
    main()
