"""The papers' claims about speed on a CUDA device: policies at growing contexts, captured decoding beside eager, fewer bits.

    python -m lab.measure.gpu_speed --model random:vicuna-7b random:qwen2.5-vl-7b --quant none nf4 --contexts 2k,8k,32k,128k

Every cell is one of `edgemllm bench`, in a process of its own. MEDA compresses the prompt to `rho`, so its budget is the whole
context. The page is written after every cell: what was measured stays, whatever comes then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgemllm.commands.bench import grid as bench
from edgemllm.device.memory import human_bytes
from edgemllm.errors import EdgeError
from edgemllm.planning.request import Request
from edgemllm.units import parse_count, short_count
from lab.measure import pages, policy

BUDGET, ROOM = 2048, 1024
SIDES = ("full", "meda/rho=0.2", "meda/rho=0.05", "inf-mllm")
BESIDE = {
    "Decoding with graphs and without": "inf-mllm+eager,inf-mllm,streaming-llm,h2o,edge",
    "Fewer bits, by Triton's kernels and in blocks": "inf-mllm,inf-mllm+8,inf-mllm+8+blocks,inf-mllm+4,inf-mllm+4+blocks",
}
COLUMNS = (
    "model", "quant", "context", "side", "first token ms", "prefill tok/s", "decode ms", "p10-p90", "tok/s", "times full", "KV",
    "of full's KV", "of bandwidth",
)  # fmt: skip


def cell(side: str, model: str, quant: str, context: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell. Raises EdgeError, for one where it does not fit."""
    name, settings = policy.split(side)
    budget = {"full": "auto", "meda": str(context + ROOM)}.get(name, str(BUDGET))
    request = Request(model=model, settings=settings, dtype=options.dtype, device=options.device)
    (one,) = bench.grid(request, [name], [context], [budget], [quant], options.new_tokens, options.repeat)
    one.prepare()
    return bench.run(one)


def row(side: str, model: str, context: int, run: dict[str, Any], full: dict[str, Any] | None) -> tuple[str, ...]:
    """Write a row of the table."""
    spread, kv = run["decode_ms"], run["kv"]["bytes"]
    faster = f"{full['decode_ms']['median'] / spread['median']:.2f}" if full else ""
    share = f"{kv / full['kv']['bytes']:.1%}" if full else ""
    return (
        model, run["quant"], short_count(context), side, f"{run['ttft_ms']:.0f}", f"{run['prefill_tps']:.0f}",
        f"{spread['median']:.2f}", f"{spread['p10']:.2f}-{spread['p90']:.2f}", f"{run['decode_tps']:.1f}", faster,
        human_bytes(kv), share, f"{run['roofline_share']:.0%}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["random:vicuna-7b", "random:qwen2.5-vl-7b"])
    parser.add_argument("--quant", nargs="+", default=["none", "nf4"])
    parser.add_argument("--contexts", default="2k,8k,32k,128k")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a folder; default docs/measurements")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False; --device cpu")
    if options.out is not None and not options.out.is_dir():
        parser.error(f"--out {options.out} is not a folder")
    try:
        contexts = [parse_count(word, "--contexts") for word in options.contexts.split(",")]
    except EdgeError as error:
        parser.error(error.message)
    path = pages.page(options.device, options.out, "speed")
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    path.write_text(
        f"# Speed on {device}\n\n"
        f"{pages.versions('torch', 'transformers')}, {options.dtype}, random weights, batch 1. "
        f"Medians of {options.repeat} x {options.new_tokens} tokens; `inf-mllm` holds {BUDGET} tokens per layer.\n\n"
        + f"    python -m lab.measure.gpu_speed {' '.join(sys.argv[1:])}".rstrip()
        + f"\n\n{pages.head(COLUMNS, COLUMNS[:4])}\n"
    )

    def write(line: str) -> None:
        print(line, flush=True)
        with path.open("a") as out:
            out.write(line + "\n")

    for model in options.model:
        for quant in options.quant:
            for context in contexts:
                compare(model, quant, context, options, write)
    for model in options.model:
        for title, sides in BESIDE.items():
            beside(f"{title}, {model}", sides, model, options, write)
    print(path)


def compare(model: str, quant: str, context: int, options: argparse.Namespace, write: Callable[[str], None]) -> None:
    """Write the row of every side at one context; a side that does not fit says so in its row."""
    full = None
    for side in SIDES:
        try:
            run = cell(side, model, quant, context, options)
        except EdgeError as error:
            reason = " ".join(error.message.split())
            write(pages.row([model, quant, short_count(context), f"{side}: {reason}", *[""] * (len(COLUMNS) - 4)]))
            continue
        full = run if side == "full" else full
        write(pages.row(row(side, model, context, run, full)))


def beside(title: str, sides: str, model: str, options: argparse.Namespace, write: Callable[[str], None]) -> None:
    """Write how the steps of sides compare that take turns. Ends the program where that cannot be measured."""
    command = [
        "lab.measure.ratios", "decode", "--device", options.device, "--dtype", options.dtype, "--contexts", "4k",
        "--tokens", "128", "--sides", sides, "--model", model,
    ]  # fmt: skip
    write(f"\n## {title}\n\n    python -m {' '.join(command)}\n")
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"lab.measure.ratios failed with exit code {done.returncode}; its message is above")
    write(done.stdout.rstrip())


if __name__ == "__main__":
    main()
