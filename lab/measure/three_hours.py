"""Stream hours of looped footage with slides, ask 300 questions on the way, and check that nothing grows or slows down.

    python -m lab.measure.three_hours --footage clip.mp4 --policies inf-mllm,edge --write docs/measurements/three-hours.md

makes one video, watches it with `edgemllm stream` once for each policy, in a process of its own, and reports: KV bytes, peak
memory after ten minutes and at the end, seconds per frame in the first and the last hour (third, of a shorter video).
Exit 1 where something grew. Options it does not know go to `edgemllm stream`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.measure import pages
from lab.measure.hour_of_video import loop

EARLY_S = 600
GROWTH, SLOWER = 1.03, 1.2
"""What peak memory may grow after ten minutes, and how much longer a frame may take at the end."""
COLUMNS = (
    "policy", "answers", "frames", "kept of tokens seen", "KV bytes", "peak RSS after 10 min", "at the end", "growth",
    "ms a frame, first third", "last third", "ratio", "times real time",
)  # fmt: skip


def watch(video: Path, policy: str, every: float, further: list[str]) -> tuple[list[dict[str, Any]], float]:
    """Return the events of one run, and its seconds."""
    command = [sys.executable, "-m", "edgemllm", "stream", str(video), "--policy", policy, "--jsonl", "-q"]
    command += ["--ask", "What number was with the red circle?", "--every", f"{every:g}s", "--max-tokens", "16", *further]
    began, found = time.monotonic(), []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))
            if found[-1]["event"] == "stats":
                done, took = found[-1]["video_s"] / 60, (time.monotonic() - began) / 60
                print(f"\r{policy} {done:.0f} min of video in {took:.1f} min", end="", file=sys.stderr)
    print(file=sys.stderr)
    if process.returncode:
        sys.exit(f"edgemllm stream --policy {policy} ended with {process.returncode}")
    return found, time.monotonic() - began


def measure(policy: str, events: list[dict[str, Any]], minutes: float, wall_s: float, rounds: int) -> tuple[str, bool]:
    """Return a row of the table, and whether all is as promised."""
    stats = [event for event in events if event["event"] == "stats"]
    answers = [event for event in events if event["event"] == "answer"]
    third = minutes * 20
    sizes = {event["kv"]["bytes"] for event in [*answers, *stats]}
    early = next(event for event in stats if event["video_s"] >= min(EARLY_S, third))
    before, after = early["memory"]["rss_peak_bytes"], stats[-1]["memory"]["rss_peak_bytes"]

    def latency(start: float, end: float) -> float:
        one, other = (next((each for each in stats if each["video_s"] >= time), stats[-1]) for time in (start, end))
        frames = other["video"]["frames_seen"] - one["video"]["frames_seen"]
        return float(1000 * (other["frame_s"] - one["frame_s"]) / frames)

    first, last = latency(0, third), latency(2 * third, 3 * third)
    kv, seen = stats[-1]["kv"], stats[-1]["video"]["frames_seen"]
    good = (
        len(sizes) == 1
        and kv["bytes"] <= kv["budget_bytes"]
        and after <= GROWTH * before
        and last <= SLOWER * first
        and wall_s < 60 * minutes
        and len(answers) >= rounds
        and events[-1] == {"schema": "edgemllm/1", "event": "end", "exit_code": 0}
    )
    size = f"{sizes.pop()}" if len(sizes) == 1 else f"**{min(sizes)} to {max(sizes)}**"
    cells = (
        f"`{policy}`", len(answers), seen, f"{kv['tokens']:g} of {kv['seen_tokens']}", size, f"{before / 2**20:.1f} MiB",
        f"{after / 2**20:.1f} MiB", f"{100 * (after / before - 1):+.1f}%", f"{first:.1f}", f"{last:.1f}",
        f"{last / first:.2f}", f"{60 * minutes / wall_s:.1f}",
    )  # fmt: skip
    return pages.row(cells), good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--policies", default="inf-mllm")
    parser.add_argument("--write", type=Path, help="the measurement as Markdown")
    options, further = parser.parse_known_args()
    further = further if "--kv-budget" in further else ["--kv-budget", "512", *further]
    every = 60 * options.minutes / options.rounds
    rows, well = [], True
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "footage.mp4"
        loop(options.footage, options.minutes, video)
        for policy in options.policies.split(","):
            events, wall_s = watch(video, policy, every, further)
            row, good = measure(policy, events, options.minutes, wall_s, options.rounds)
            rows.append(row)
            well = well and good
            print(f"{row} {'as promised' if good else 'NOT AS PROMISED'}", flush=True)
            if options.write:
                options.write.write_text(page(options, further, every, rows))
    sys.exit(0 if well else 1)


def page(options: argparse.Namespace, further: list[str], every: float, rows: list[str]) -> str:
    """Write the measurement with the command that repeats it."""
    footage = f"--footage {options.footage.name} " if options.footage else ""
    what = f"--minutes {options.minutes:g} --rounds {options.rounds} --policies {options.policies}"
    return f"""\
# {options.minutes / 60:g} hours of video, {options.rounds} questions on the way

{pages.machine()}, demo model, `{" ".join(further)}`, 1 frame a second, a question
every {every:g} s. One video of looped footage with a slide in every minute, watched by `edgemllm stream` in a process of its
own for each policy. Milliseconds a frame are the mean over a third of the video, questions left out; "times real time" counts
everything, loading too. One run.

    python -m lab.measure.three_hours {footage}{what}

{pages.head(COLUMNS, COLUMNS[:1])}
""" + "".join(f"{row}\n" for row in rows)


if __name__ == "__main__":
    main()
