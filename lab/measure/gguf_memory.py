"""What loading a GGUF file takes of the host's memory (VmHWM), beside the bytes of the loaded weights and the plan's figure.

    python -m lab.measure.gguf_memory SmolLM2-135M-Instruct.Q4_1.gguf

Each row is a process of its own, which has imported all libraries and holds the file's tokenizer before it is measured.
Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from edgemllm.commands.tables import markdown
from edgemllm.models import loading
from edgemllm.models.gguf.tokenizer import read_tokenizer
from edgemllm.planning.peaks import conversion_bytes

CASES = (
    ("none", "float32"), ("none", "bfloat16"), ("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "bfloat16"),
    ("int4", "bfloat16"),
)  # fmt: skip


def main() -> None:
    """Print the table, or with a quantisation and a dtype after the file one row as JSON."""
    file, *case = sys.argv[1:]
    if case:
        print(json.dumps(_measured(file, *case)))
        return
    rows = [("weights", "result", "host peak", "of the result", "plan", "seconds")]
    for quant, dtype in CASES:
        command = [sys.executable, "-m", "lab.measure.gguf_memory", file, quant, dtype]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result, peak, plan, seconds = json.loads(done.stdout.splitlines()[-1])
        sizes = (f"{size / 2**20:.1f} MiB" for size in (result, peak, plan))
        rows.append((f"{quant}, {dtype}", next(sizes), next(sizes), f"{peak / result:.2f}", next(sizes), f"{seconds:.1f}"))
    print(markdown(rows))


def _measured(file: str, quant: str, dtype: str) -> tuple[int, int, int, float]:
    """Return the bytes of the weights, the peak above what there was before, the planned peak, and the seconds it took."""
    checkpoint = loading.locate(file)
    assert checkpoint.gguf is not None
    loading.load(loading.locate("demo"), quant, dtype)
    tokenizer = read_tokenizer(file, checkpoint.gguf, checkpoint.config.vocab_size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _status("VmRSS"), time.perf_counter()
    family = loading.load(checkpoint, quant, dtype)
    peak, seconds = _status("VmHWM") - before, time.perf_counter() - began
    assert len(tokenizer) == len(family.tokenizer)
    spec = replace(checkpoint.spec, on_cpu=True)
    return spec.weights_bytes(quant, dtype), peak, conversion_bytes(spec, quant, dtype, resident=True), seconds


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
