"""Short videos of slides, which the demo model can read."""

from __future__ import annotations

from pathlib import Path

import cv2

from edgemllm.media import slides


def write_clip(path: Path, *facts: slides.Fact, seconds: int = 2) -> Path:
    """Write a video that shows each fact for some seconds."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 2, (320, 180))
    for fact in facts:
        for _ in range(2 * seconds):
            writer.write(cv2.cvtColor(slides.draw(fact), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_clips(folder: Path, count: int) -> list[Path]:
    """Write `count` clips, each with another slide."""
    folder.mkdir(exist_ok=True)
    return [write_clip(folder / f"{n:02}.avi", slides.Fact(slides.KINDS[n], n % 10)) for n in range(count)]
