"""Load a full-size model with random weights, stream an hour of frames through a fixed cache, and write down what it took.

    python -m lab.measure.gpu_hour --model random:qwen2.5-vl-7b --quant none nf4 --seconds 3600

Each quantisation runs in a process of its own, so that peaks are its own. Speed and bytes are those of the real model:
they do not depend on the values of the weights. Answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemllm import policies
from edgemllm.device import memory
from edgemllm.media import slides
from edgemllm.media.detail import Detail
from edgemllm.media.frame import Frame
from edgemllm.models import loading
from edgemllm.models.chat import Sampling
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.session import Session
from lab.measure import pages

HEIGHT, WIDTH, PIECE = 360, 640, 600
COLUMNS = (
    "quant", "weights planned", "weights", "load s", "KV budget", "KV", "peak after 10 min", "peak", "frames/s",
    "prefill tok/s", "decode tok/s",
)  # fmt: skip


def frames(seconds: int) -> Iterator[Frame]:
    """Draw footage, one frame per second; pieces of it recur, so that making them takes no time worth mentioning."""
    rng = np.random.default_rng(0)
    pictures = [picture for _ in range(8) for picture in slides.footage(rng, 8, HEIGHT, WIDTH)]
    for second in range(seconds):
        yield Frame(pictures[second % len(pictures)], float(second), second)


def measure(options: argparse.Namespace, quant: str) -> dict[str, Any]:
    """Measure one run."""
    device = options.device
    cuda = device == "cuda"
    checkpoint = loading.locate(options.model)
    began = time.perf_counter()
    detail = Detail(tokens_per_frame=options.tokens_per_frame)
    family = loading.load(checkpoint, quant, options.dtype, device, detail=detail)
    loaded = time.perf_counter() - began
    weights = torch.cuda.memory_allocated() if cuda else None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    session = Session(family, policies.build("inf-mllm"), options.kv_budget, options.chunk)
    early, batch = None, []
    for frame in frames(options.seconds):
        batch.append(frame)
        if len(batch) == FRAMES_AT_ONCE or frame.index == options.seconds - 1:
            session.see(batch, 1.0)
            batch = []
        if frame.index == PIECE and cuda:
            early = torch.cuda.max_memory_allocated()
    pieces = list(session.ask("What happened?", Sampling(max_tokens=128)))
    kv = session.kv()
    return {
        "quant": quant,
        "weights_planned": checkpoint.spec.weights_bytes(quant, options.dtype),
        "weights": weights,
        "load_s": round(loaded, 1),
        "kv": kv,
        "early_peak": early,
        "peak": torch.cuda.max_memory_allocated() if cuda else None,
        "memory": memory.report(device),
        "speed": session.meter.rates(),
        "answered": len(pieces),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Write the table in Markdown."""

    def size(count: int | None) -> str:
        return "" if count is None else memory.human_bytes(count)

    rows = [
        (
            run["quant"], size(run["weights_planned"]), size(run["weights"]), run["load_s"], size(run["kv"]["budget_bytes"]),
            size(run["kv"]["bytes"]), size(run["early_peak"]), size(run["peak"]), run["speed"]["frames_per_s"],
            run["speed"]["prefill_tps"], run["speed"]["decode_tps"],
        )
        for run in found
    ]  # fmt: skip
    return pages.table(COLUMNS, rows, left=["quant"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen2.5-vl-7b")
    parser.add_argument("--quant", nargs="+", default=["none", "nf4"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--kv-budget", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--tokens-per-frame", type=int)
    parser.add_argument("--out", type=Path, help="a folder; default docs/measurements")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options, options.quant[0])))
        return
    found = []
    for quant in options.quant:
        done = subprocess.run(
            [sys.executable, "-m", "lab.measure.gpu_hour", *sys.argv[1:], "--quant", quant, "--alone"],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{options.model} with {quant} failed with exit code {done.returncode}; its message is above")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    path = pages.page(options.device, options.out)
    seen = found[0]["kv"]["seen_tokens"]
    path.write_text(
        f"# {options.seconds} seconds of video on {device}\n\n"
        f"{pages.versions('torch', 'transformers')}, {options.model}, {options.dtype}, `inf-mllm`, "
        f"{options.kv_budget} tokens per layer, chunks of {options.chunk}, 1 frame a second ({WIDTH} x {HEIGHT}), "
        f"{seen} tokens seen. One run.\n\n    scripts/gpu_check {' '.join(sys.argv[1:])}".rstrip()
        + f"\n\n{table(found)}\n"
    )
    print(path.read_text())
    over = [run["quant"] for run in found if run["kv"]["bytes"] > run["kv"]["budget_bytes"]]
    sys.exit(f"over the KV budget: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
