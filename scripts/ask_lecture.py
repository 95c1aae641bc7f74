#!/usr/bin/env python3
"""Let `edgemllm chat` watch the sample lecture and answer all its questions; count the right answers.

scripts/ask_lecture.py [--need 0.9] [further options of edgemllm chat]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "edgemllm" / "assets" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--need", type=float, default=0.9, help="share of right answers below which the exit code is 1")
    options, further = parser.parse_known_args()
    facts = json.loads((DEMO / "lecture.json").read_text())
    lecture = str((DEMO / "lecture.mp4").relative_to(Path.cwd()) if DEMO.is_relative_to(Path.cwd()) else DEMO / "lecture.mp4")
    command = [
        sys.executable,
        "-m",
        "edgemllm",
        "chat",
        "--video",
        lecture,
        "--policy",
        "inf-mllm",
        "--max-tokens",
        "24",
        "--json",
        *further,
    ]
    print(f"edgemllm {shlex.join(command[3:])} QUESTIONS...")
    done = subprocess.run([*command, *(fact["question"] for fact in facts)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result = json.loads(done.stdout)
    right = 0
    for fact, turn in zip(facts, result["turns"], strict=True):
        good = turn["answer"] == fact["answer"]
        right += good
        note = "" if good else "   (right: " + fact["answer"] + ")"
        print(f"{'right' if good else 'WRONG'}  {fact['question']:44} {turn['answer']}{note}")
    kv = result["kv"]
    held = f"KV cache {kv['bytes']} of {kv['budget_bytes']} bytes, {kv['evicted_tokens']} tokens evicted"
    print(f"{right} of {len(facts)} right; {held}")
    sys.exit(0 if right >= options.need * len(facts) else 1)


if __name__ == "__main__":
    main()
