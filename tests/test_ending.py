"""Runs end: with the error of a model that fails in the middle of a video, and while a source brings nothing."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgemllm.models.loading import DEMO

LECTURE = str(DEMO / "lecture.mp4")
FAILING = """
import sys

from edgemllm import session

forward = session.forward

def failing(model, cache, chunk):
    if cache.seen > 100:
        print("the model fails now", file=sys.stderr, flush=True)
        raise RuntimeError("broken in the middle")
    return forward(model, cache, chunk)

session.forward = failing
"""
COMMAND = """
from edgemllm.cli.main import main

main()
"""
WATCHING = """
from edgemllm import policies
from edgemllm.media.feed import Feed
from edgemllm.media.video import Video
from edgemllm.models import loading

class Endless:
    path = "endless"

    def __iter__(self):
        while True:
            yield from Video.open(LECTURE)

def test_watching():
    family = loading.load(loading.locate("demo"))
    session.Session(family, policies.build("inf-mllm"), 96, 16).watch(Feed(Endless(), 8, live=True))
"""
BARE = FAILING + f"LECTURE = {LECTURE!r}\n" + WATCHING
WAYS = {
    "chat": (FAILING + COMMAND, ("chat", "--video", LECTURE, "--fps", "25", "hi"), "error: unexpected RuntimeError"),
    "stream": (FAILING + COMMAND, ("stream", LECTURE, "--fps", "25"), "error: unexpected RuntimeError"),
    "session": (BARE + "\ntest_watching()\n", (), "Traceback"),
    "pytest": (BARE, (), "1 failed"),
}
ENDED_S = 30
"""It takes less than a second, but not on a busy machine."""


@pytest.mark.parametrize("way", WAYS)
def test_a_run_ends_soon_after_its_model_has_failed(way: str, tmp_path: Path) -> None:
    text, arguments, words = WAYS[way]
    script = tmp_path / "test_script.py"
    script.write_text(text)
    runner = ("-m", "pytest", "-s", "-p", "no:cacheprovider") if way == "pytest" else ()
    process = subprocess.Popen(
        [sys.executable, *runner, str(script), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert any("the model fails now" in line for line in process.stdout)
        said, _ = process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert words in said
    assert "broken in the middle" in said


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (("chat", "hi", "--video"), signal.SIGINT, 130),
        (("stream",), signal.SIGTERM, 143),
        (("perplexity", "--text"), signal.SIGINT, 130),
        (("stream", "--timeout", "3s"), None, 6),
    ],
)
def test_a_pipe_that_nobody_writes_to_is_reported_and_holds_nothing_up(
    arguments: tuple[str, ...], number: signal.Signals | None, code: int, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemllm", *arguments, str(fifo)],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        # A test run in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any(line.startswith("waiting for ") for line in process.stderr)
        if number is not None:
            process.send_signal(number)
        process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
    assert process.returncode == code
