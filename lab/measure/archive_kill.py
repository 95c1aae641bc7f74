"""Kill a session that keeps an archive at random moments, and see what is left of it.

    python -m lab.measure.archive_kill --times 50

Every time a process forked from this one watches drawn footage with the demo model, as fast as it can, says after each
frame that it has seen it, and is killed after 0.2 to 2 seconds. Then the archive is reopened and read as a whole. It is
the same one each time, under another name of the video.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from edgemllm.archive.archive import Archive
from edgemllm.archive.contents import summary
from edgemllm.archive.session import ArchivedSession, name_source
from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.launch import prepare
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.planning.request import Request


def watch(family: ModelFamily, path: Path, frames: Sequence[Frame], name: str, told: int) -> None:
    """Watch until somebody kills us; write a byte after each frame."""
    archive = Archive(path)
    make = functools.partial(ArchivedSession, archive=archive)
    session = prepare(Request(policy="edge", kv_budget="64")).open(family=family, make=make)
    name_source(session, name)
    for frame in frames:
        session.see([frame])
        os.write(told, b".")


def killed(family: ModelFamily, path: Path, frames: Sequence[Frame], name: str, after: float) -> tuple[int, int]:
    """Return how many frames a killed process said it had seen, and how many its archive holds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            watch(family, path, frames, name, writing)
        os._exit(1)
    os.close(writing)
    first = os.read(reading, 1)  # it has begun
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = len(first)
    while some := os.read(reading, 65536):
        said += len(some)
    os.close(reading)
    with contextlib.closing(Archive(path)) as archive:
        archive.database.check()
        return said, next(each["frames"] for each in summary(archive) if each["name"] == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = prepare(Request()).open().family
    frames = slide_haystack(1, 1000, 10, False).items
    rng, lost, seen = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.times):
            said, kept = killed(family, Path(folder) / "archive.db", frames, f"video {number}", rng.uniform(0.2, 2))
            seen += said
            lost.append(said - kept)
    print(f"killed {options.times} times, {seen} frames in all: the archive whole, at most {max(lost)} frames lost at once")


if __name__ == "__main__":
    main()
