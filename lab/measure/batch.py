"""`edgemllm batch` over short videos: one process beside two workers of Ray, and what is left when a process is killed.

python -m lab.measure.batch videos --count 60
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import edgemllm
from edgemllm.media import slides
from lab.demo_model.lecture import write_video
from lab.measure import pages

ASK = ("--ask", "What is on the screen now?", "--ask", "List the numbers.", "--kv-budget", "1024")
RAY = ("--ray", "local", "--workers", "2")
ALIKE = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
"""What both sides run with: Ray gives its workers a low priority otherwise, which counts on a machine that others use too."""


def make(folder: Path, count: int) -> None:
    """Write videos of 34 seconds: three slides, and footage between them."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / f"{number:02d}.mp4"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        kinds = [slides.KINDS[int(kind)] for kind in rng.permutation(len(slides.KINDS))[:3]]
        facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds]
        plan: list[tuple[slides.Fact | None, int]] = []
        for fact in facts:
            plan += [(None, 6), (fact, 4)]
        write_video(path, [*plan, (None, 4)], rng)


class Run:
    """A run of the command, and when each of its lines came."""

    def __init__(self, words: Sequence[str], out: Path, at: int = 0, act: Callable[[psutil.Process], None] | None = None):
        began, self.times = time.monotonic(), list[float]()
        command = [sys.executable, "-m", "edgemllm", "batch", *words, *ASK, "-o", str(out), "--progress", "none"]
        with subprocess.Popen(command, env={**os.environ, **ALIKE}) as process:
            before = _count(out)
            while process.poll() is None:
                time.sleep(0.02)
                while _count(out) - before > len(self.times):
                    self.times.append(time.monotonic() - began)
                if act is not None and len(self.times) >= at:
                    act(psutil.Process(process.pid))
                    act = None
        self.wall, self.code = time.monotonic() - began, process.returncode

    def rate(self) -> float:
        """Return videos a minute, from the first line to the last."""
        return 60 * (len(self.times) - 1) / (self.times[-1] - self.times[0])


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def answers(path: Path) -> dict[str, Any]:
    """Return what a file says of each video, without times. Raises ValueError where one is there twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["id"]: {key: line[key] for key in line if key not in ("seconds", "attempts")} for line in lines}
    if len(found) != len(lines):
        raise ValueError(f"{path}: {len(lines)} lines of {len(found)} videos")
    return found


def kill_worker(driver: psutil.Process) -> None:
    """End one of the actors that have the model."""
    workers = [each for each in driver.children(recursive=True) if "".join(each.cmdline()[:1]).startswith("ray::Map")]
    workers[0].send_signal(signal.SIGKILL)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def parts(videos: Sequence[Path]) -> None:
    """Print the milliseconds of processor time that each part of a video's work takes."""
    session, clock = edgemllm.open("demo", kv_budget=1024), time.process_time
    found: dict[str, list[float]] = {"decoding the video": [], "vision tower and prefill": [], "an answer": []}
    for video in videos:
        session.clear()
        at = [clock()]
        frames = list(edgemllm.Video.open(video))
        at.append(clock())
        session.watch(frames)
        at.append(clock())
        "".join(session.ask(ASK[1]))
        at.append(clock())
        for values, before, after in zip(found.values(), at, at[1:], strict=False):
            values.append(1000 * (after - before))
    for name, values in found.items():
        print(f"{name}: {spread(values, 0)} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="only where the processor's time goes, for twelve of them")
    options = parser.parse_args()
    make(options.folder, options.count)
    if options.parts:
        parts(sorted(options.folder.glob("*.mp4"))[:12])
        return
    videos, one = str(options.folder), str(sorted(options.folder.glob("*.mp4"))[0])
    print(f"{pages.machine()}; load {os.getloadavg()[0]:.1f} when it began")
    with tempfile.TemporaryDirectory() as place:
        speed(Path(place), videos, one, options.rounds)
        kills(Path(place), videos, options.count)


def speed(place: Path, videos: str, one: str, rounds: int) -> None:
    """Let one process and two workers take turns."""
    sides: dict[str, tuple[str, ...]] = {"one process": (), "two workers": RAY}
    whole: dict[str, list[Run]] = {name: [] for name in sides}
    small: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, extra in sides.items():
            out = place / f"{name} {number}.jsonl"
            whole[name].append(Run((videos, *extra), out))
            small[name].append(Run((one, *extra), place / f"{name} {number} small.jsonl"))
            same = answers(out) == answers(place / "one process 0.jsonl")
            print(f"{name}: {len(answers(out))} videos, the same answers as one process: {same}", flush=True)
    for name in sides:
        rate, wall, least = ([f(run) for run in runs] for f, runs in (
            (Run.rate, whole[name]), (lambda run: run.wall, whole[name]), (lambda run: run.wall, small[name]),
        ))  # fmt: skip
        print(f"| {name} | {spread(rate)} | {spread(wall)} | {spread(least)} |", flush=True)


def kills(place: Path, videos: str, count: int) -> None:
    """End a worker, then a driver, in the middle."""
    expected, out = answers(place / "one process 0.jsonl"), place / "killed.jsonl"
    run = Run((videos, *RAY), out, count // 3, kill_worker)
    print(f"a worker killed: exit {run.code}, {len(answers(out))} videos, each once, the same: {answers(out) == expected}")
    out = place / "driver.jsonl"
    Run((videos, *RAY), out, count // 3, psutil.Process.kill)
    left = out.read_text()
    kept = _count(out)
    run = Run((videos, *RAY, "--resume"), out)
    print(
        f"the driver killed after {kept} videos: exit {run.code}, {len(run.times)} computed then, {len(answers(out))} in all; "
        f"what was there stayed: {out.read_text().startswith(left)}, the same: {answers(out) == expected}"
    )


if __name__ == "__main__":
    main()
