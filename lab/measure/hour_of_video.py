"""Watch a long video of looped footage and check that neither the KV cache nor host memory grows with it.

    python -m lab.measure.hour_of_video --footage clip.mp4 --minutes 60 --compare 10

makes two videos by looping the clip (or drawn footage, without --footage), watches each with `edgemllm chat` in a
process of its own, and prints KV bytes and peak RSS side by side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from edgemllm.media import slides

RATE, WIDTH, HEIGHT = 5, 320, 180


def loop(footage: Path | None, minutes: float, path: Path) -> None:
    """Write a video of the wanted length: the clip over and over, a slide of three seconds in every minute."""
    rng = np.random.default_rng(0)
    clip = [image for _ in range(20) for image in slides.footage(rng, 25, HEIGHT, WIDTH)]
    if footage is not None:
        capture, clip = cv2.VideoCapture(str(footage)), []
        while len(clip) < 600:
            ok, image = capture.read()
            if not ok:
                break
            clip.append(cv2.cvtColor(cv2.resize(image, (WIDTH, HEIGHT)), cv2.COLOR_BGR2RGB))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (WIDTH, HEIGHT))
    for number in range(round(minutes * 60 * RATE)):
        second = number // RATE
        if second % 60 in (30, 31, 32):
            fact = slides.Fact(slides.KINDS[second // 60 % 48], second // 60 % 10)
            image = slides.draw(fact, HEIGHT, WIDTH)
        else:
            image = clip[number % len(clip)]
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--compare", type=float, default=10, help="minutes of the shorter video")
    options, further = parser.parse_known_args()
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (options.compare, options.minutes):
            path = Path(folder) / f"{minutes:g}.mp4"
            loop(options.footage, minutes, path)
            command = [sys.executable, "-m", "edgemllm", "chat", "--video", str(path), "--kv-budget", "512", "--jsonl", "-q"]
            done = subprocess.run(
                [*command, *further, "What number was with the red circle?"], capture_output=True, text=True, check=True
            )
            events = [json.loads(line) for line in done.stdout.splitlines()]
            stats = next(event for event in events if event["event"] == "stats")
            seen[minutes] = stats
            kv, rss = stats["kv"], stats["memory"]["rss_peak_bytes"]
            print(
                f"{minutes:g} min: {kv['seen_tokens']} tokens seen, {kv['tokens']:g} kept, KV {kv['bytes']} of "
                f"{kv['budget_bytes']} bytes, peak RSS {rss / 2**20:.1f} MiB, {stats['speed']['frames_per_s']} frames/s",
                flush=True,
            )
    short, long = (seen[minutes]["memory"]["rss_peak_bytes"] for minutes in (options.compare, options.minutes))
    same = seen[options.compare]["kv"]["bytes"] == seen[options.minutes]["kv"]["bytes"]
    print(f"KV bytes {'equal' if same else 'DIFFER'}; peak RSS {100 * (long / short - 1):+.1f}%")
    sys.exit(0 if same and long <= 1.05 * short else 1)


if __name__ == "__main__":
    main()
