"""Run kvpress next to edgemllm: prefill and decode time, KV and peak memory at equal kept tokens, random weights of one shape.

    python -m lab.measure.kvpress --context 4096 --kept 1024 --new-tokens 16 --repeat 2

Each run is a process of its own; kvpress runs in an environment of its own, which is made the first time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from lab.measure import kvpress_environment, pages

SHAPE = "bench-134m"
PRESSES = ("StreamingLLMPress", "SnapKVPress", "ObservedAttentionPress")
POLICIES = "streaming-llm,snapkv,h2o"
COLUMNS = ("", "first token ms", "decode ms", "kept tokens", "KV MiB", "peak MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--kept", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    config = pages.TOP / "configs" / "models" / f"{SHAPE}.json"
    rows = []
    for press in PRESSES:
        print(f"{press} ...", file=sys.stderr)
        about = (config, press, options.context, options.kept, options.new_tokens, options.repeat)
        rows.append(theirs(json.loads(kvpress_environment.run("lab.measure.kvpress_cell", *about))))
    command = [
        sys.executable, "-m", "edgemllm", "bench", "--model", f"random:{SHAPE}", "--policy", POLICIES,
        "--kv-budget", options.kept, "--context", options.context, "--new-tokens", options.new_tokens,
        "--repeat", options.repeat, "--jsonl",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    events = map(json.loads, done.stdout.splitlines())
    rows += [ours(event) for event in events if event["event"] == "run"]
    print(pages.table(COLUMNS, rows, left=[""]))


def theirs(run: dict[str, Any]) -> tuple[str, ...]:
    """Give the cells of a run of kvpress_cell."""
    return cells(run["policy"], run, run["decode_ms"], run["kv_tokens"], run["kv_bytes"], run["rss_peak_bytes"])


def ours(run: dict[str, Any]) -> tuple[str, ...]:
    """Give the cells of a run of `edgemllm bench`."""
    kv, peak = run["kv"], run["memory"]["rss_peak_bytes"]
    return cells(f"edgemllm {run['policy']}", run, run["decode_ms"]["median"], kv["tokens"], kv["bytes"], peak)


def cells(name: str, run: dict[str, Any], decode: float, tokens: float, size: int, peak: int) -> tuple[str, ...]:
    """Write the figures of either side."""
    return name, f"{run['ttft_ms']:.0f}", f"{decode:.1f}", f"{tokens:.0f}", f"{size / 2**20:.1f}", f"{peak / 2**20:.0f}"


if __name__ == "__main__":
    main()
