#!/usr/bin/env python3
"""Compare the command line of two checkouts: calls of every command, exit codes and output, and all help pages.

    python lab/compare_commands.py ../before ../after
    python lab/compare_commands.py ../before --record before.json
    python lab/compare_commands.py before.json ../after --only recall

JSON must be equal field by field and in the same order, but for times, speeds and memory. Text must be equal, and so must
the message of a failure. Differences are printed as diffs; for help pages somebody decides whether only the wording
differs. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LECTURE = "lecture.mp4"
CHAT = ["chat", "--video", LECTURE, "--end", "40", "--kv-budget", "96", "--max-tokens", "16"]
STREAM = ["stream", LECTURE, "--end", "30", "--kv-budget", "96", "--max-tokens", "8", "--no-live", "--progress", "none"]
ASKS = ["--ask", "What is on the screen now?", "--every", "10s", "--at", "00:00:15", "What number was with the red circle?"]
PERPLEXITY = ["perplexity", "--text", "page.txt", "--tokens", "600", "--kv-budget", "96", "--progress", "none"]
RECALL = ["recall", "--streams", "1", "--tokens", "500", "--facts", "4", "--kv-budget", "30%", "--progress", "none"]
BENCH = ["bench", "--context", "64", "--new-tokens", "4", "--repeat", "1", "--kv-budget", "96", "--progress", "none"]
INSPECT = ["inspect", "--text", "short.txt", "--quiet"]
PLAN = ["plan", "--profile", "orin-nano-8gb"]

CALLS: list[tuple[list[str], str]] = [
    # Arguments, standard input.
    ([*CHAT, "What number was with the red circle?"], ""),
    ([*CHAT, "--json", "What number was with the red circle?", "What is on the screen now?"], ""),
    ([*CHAT, "--jsonl"], "What number was with the red circle?\n\nWhat is on the screen now?\n"),
    ([*CHAT, "--jsonl", "--policy", "full", "What number was with the red circle?"], ""),
    ([*CHAT, "--dry-run", "--json", "--profile", "cpu", "x"], ""),
    (
        [*CHAT, "--temperature", "0.8", "--top-p", "0.9", "--seed", "3", "-s", "Be short.", "--set", "slack=2", "--json", "x"],
        "",
    ),
    (["chat", " "], ""),
    (["chat", "--video", "nowhere.mp4", "x"], ""),
    (["chat", "--kv-budget", "3", "x"], ""),
    (["chat", "--policy", "edg", "x"], ""),
    (["chat", "--quant", "nf5", "x"], ""),
    (["chat", "--model", "random:nothing", "x"], ""),
    (["chat", "--progress", "loud", "x"], ""),
    (["chat", "--max-tokens", "0", "x"], ""),
    ([*STREAM, *ASKS], ""),
    ([*STREAM, *ASKS, "--json"], ""),
    ([*STREAM, *ASKS, "--jsonl", "--skip-similar", "0.98", "--save", "stream.edge"], ""),
    ([*STREAM[:2], "--end", "40", *STREAM[4:], *ASKS, "--jsonl", "--skip-similar", "0.98", "--resume", "stream.edge"], ""),
    ([*STREAM, *ASKS, "--srt"], ""),
    ([*STREAM, *ASKS, "--vtt", "--at", "end", "What did you see?"], ""),
    ([*STREAM, "--srt", "--json"], ""),
    ([*STREAM, "--every", "10s"], ""),
    ([*STREAM, "--at", "1:00:00", "What?"], ""),
    ([*STREAM, "--dry-run"], ""),
    (["stream", "nowhere.mp4", "--retries", "0"], ""),
    ([*PERPLEXITY, "--json"], ""),
    ([*PERPLEXITY, "--jsonl", "--policy", "inf-mllm,window", "--compare-full", "--checkpoint", "run.edge"], ""),
    ([*PERPLEXITY, "--policy", "streaming-llm,full", "--chunk", "16", "--plot", "plot.png"], ""),
    (["perplexity", "--tokens", "50", "--json", "--progress", "none"], "A text on standard input, " * 20),
    ([*PERPLEXITY, "--dry-run", "--json", "--profile", "cpu"], ""),
    (["perplexity", "--text", "page.txt", "--loop"], ""),
    (["perplexity", "--text", "page.txt", "--tokens", "1e9"], ""),
    (["perplexity", "--text", "page.txt", "--resume"], ""),
    (["perplexity", "--text", "page.txt", "--plot", "plot.doc"], ""),
    ([*RECALL, "--json", "--between", "static"], ""),
    ([*RECALL, "--jsonl", "--policy", "inf-mllm,random", "--protocol", "both", "--between", "diverse"], ""),
    ([*RECALL, "--policy", "inf-mllm,window", "--needles", "text", "--plot", "recall.png"], ""),
    ([*RECALL, "--needles", "straw"], ""),
    ([*RECALL, "--against", "full"], ""),
    ([*BENCH, "--json", "--compare-stock"], ""),
    ([*BENCH, "--jsonl", "--policy", "inf-mllm,window"], ""),
    ([*BENCH, "--output", "csv"], ""),
    ([*BENCH, "-o", "md"], ""),
    ([*BENCH, "-o", "xls"], ""),
    ([*BENCH, "--dry-run", "--policy", "inf-mllm,window"], ""),
    ([*INSPECT, "--json", "--policy", "inf-mllm,window"], ""),
    ([*INSPECT, "--layer", "1", "--out", "pictures"], ""),
    ([*INSPECT, "--layer", "99"], ""),
    (["inspect"], ""),
    ([*PLAN, "--json"], ""),
    ([*PLAN, "--jsonl", "--kv-budget", "512MiB", "--quant", "int8"], ""),
    ([*PLAN, "--model", "random:qwen2.5-vl-7b"], ""),
    (["plan", "--profile", "all", "--model", "random:qwen2.5-vl-3b"], ""),
    (["plan", "--profile", "all", "--model", "random:qwen2.5-vl-3b", "--json", "--max-pixels", "200000"], ""),
    (["plan", "--model", "all"], ""),
    (["plan", "--profile", "nowhere"], ""),
    (["policies"], ""),
    (["policies", "edge"], ""),
    (["policies", "edg"], ""),
    (["profiles"], ""),
    (["profiles", "orin-nano-8gb"], ""),
    (["models"], ""),
    (["models", "qwen2.5-vl-3b"], ""),
    (["models", "nothing"], ""),
    (["nothing"], ""),
]

NAMES = ("chat", "stream", "perplexity", "recall", "inspect", "bench", "plan", "policies", "models", "profiles")
CALLS = [(["--help"], ""), *(([name, "--help"], "") for name in NAMES), *CALLS]

MEASURED = re.compile(
    r"t|seconds|frame_s|.*(ttft_ms|_tps|_tps_samples|per_s|decode_ms|decode_ms_samples|decode_tps_ceiling)"
    r"|.*(rss|peak|free|total)(_peak)?_bytes|roofline_share|ttft_ms_samples"
)
"""Fields of JSON that no two runs agree on: they must be there, whatever they hold."""

FIGURES = re.compile(r"\d[\d.,/]*( ?[KMG]i?B)?%?")
"""In text that reports times or memory only the words are compared."""


def main() -> None:
    """Make every call in both checkouts and print where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout, or a recording of one")
    parser.add_argument("after", type=Path, nargs="?", help="a checkout, or a recording of one")
    parser.add_argument("--record", type=Path, help="write what the first one did to this file")
    parser.add_argument("--only", default="", help="words that a call must contain")
    options = parser.parse_args()
    if options.record:
        options.record.write_text(json.dumps(dict(outputs(options.before, options.only)), indent=1))
        return
    differing = 0
    sides = (outputs(source, options.only) for source in (options.before, options.after))
    for (call, before), (_, after) in zip(*sides, strict=True):
        lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1))
        differing += bool(lines)
        print("\n".join([f"{'DIFFERS' if lines else 'equal  '}  {call}", *lines]), flush=True)
    print(f"{differing} differ")
    sys.exit(bool(differing))


def outputs(source: Path, only: str) -> Iterator[tuple[str, str]]:
    """Return each call that contains `only` and what it printed, normalised; from a recording or by making the calls."""
    if source.is_file():
        recorded = json.loads(source.read_text())
        yield from ((call, recorded.get(call, "not recorded")) for call in map(title, CALLS) if only in call)
        return
    tree = source.resolve()
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder), tree)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEMLLM_")}
        environment |= {"PYTHONPATH": f"{tree}:{tree / 'tests'}", "COLUMNS": "130", "XDG_CONFIG_HOME": folder}
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", only], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        for line in worker.stdout:
            call, code, out, err = json.loads(line)
            yield call, normal(call, code, out, err).replace(str(tree), ".")
        if worker.wait():
            raise SystemExit(f"{tree}: the calls ended with code {worker.returncode}")


def furnish(place: Path, tree: Path) -> None:
    """Make the inputs of the calls, under names that are the same for every checkout."""
    (place / "lecture.mp4").symlink_to(tree / "edgemllm/assets/demo/lecture.mp4")
    words = [f"The {place} of number {number} is {number * number % 97}." for number, place in enumerate(["box", "door"] * 60)]
    (place / "page.txt").write_text(" ".join(words))
    (place / "short.txt").write_text(" ".join(words[:40]))


def worker(only: str) -> None:
    """Make the calls with the package and the forking runner of the tests that PYTHONPATH names; a JSON line for each."""
    import command  # type: ignore[import-not-found]

    for call in CALLS:
        if only in title(call):
            done = command.run(*call[0], stdin=call[1])
            print(json.dumps([title(call), done.returncode, done.stdout, done.stderr]), flush=True)


def title(call: tuple[list[str], str]) -> str:
    """Return roughly how a call is typed, with what it reads from standard input."""
    words, typed = call
    return f"edgemllm {' '.join(words)}{f' <<< {typed[:40]!r}' if typed else ''}"


def normal(call: str, code: int, out: str, err: str) -> str:
    """Return the exit code, standard output and the message of a failure, without what differs from run to run."""
    lines = [f"exit code {code}"]
    for line in out.splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict):
            lines += json.dumps(without_figures(found), indent=1, ensure_ascii=False).splitlines()
        elif call.split()[1] in ("bench", "perplexity"):
            lines.append(" ".join(FIGURES.sub("#", line).replace("-", "").split()))
        elif line.startswith("  free "):  # of a plan
            lines.append(FIGURES.sub("#", " ".join(line.split())))
        else:
            lines.append(line)
    if code:
        lines += FIGURES.sub("#", err).splitlines()
    return "\n".join(lines)


def without_figures(found: Any) -> Any:
    """Return the same object with `...` for what was measured."""
    if isinstance(found, dict):
        return {key: "..." if MEASURED.fullmatch(key) else without_figures(value) for key, value in found.items()}
    return [without_figures(each) for each in found] if isinstance(found, list) else found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main()
