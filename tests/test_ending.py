"""Runs end: with the error of a model that fails in the middle of a video, and while a source brings nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import start, start_script
from typer.testing import CliRunner

from edgemllm.cli.main import app
from edgemllm.media.frame import Frame
from edgemllm.models.loading import DEMO
from edgemllm.session import Session

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
PYTEST = """
if __name__ == "__main__":
    import pytest

    raise SystemExit(pytest.main(["-s", "-p", "no:cacheprovider", __file__]))
"""
WAYS = {
    "chat": (FAILING + COMMAND, ("chat", "--video", LECTURE, "--fps", "25", "hi"), "error: unexpected RuntimeError"),
    "stream": (FAILING + COMMAND, ("stream", LECTURE, "--fps", "25"), "error: unexpected RuntimeError"),
    "session": (BARE + "\ntest_watching()\n", (), "Traceback"),
    "pytest": (BARE + PYTEST, (), "1 failed"),
}
ENDED_S = 30
"""It takes less than a second, but not on a busy machine."""


@pytest.mark.parametrize("way", WAYS)
def test_a_run_ends_soon_after_its_model_has_failed(way: str, tmp_path: Path) -> None:
    text, arguments, words = WAYS[way]
    script = tmp_path / "test_script.py"
    script.write_text(text)
    running = start_script(script, *arguments)
    running.wait_for("the model fails now")
    done = running.end(ENDED_S)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert words in said
    assert "broken in the middle" in said


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (("chat", "hi", "--video"), signal.SIGINT, 130),
        (("chat", "--json"), signal.SIGINT, 130),
        (("chat", "--json"), signal.SIGTERM, 143),
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
    in_a_question = arguments == ("chat", "--json")
    running = start(*arguments, *([] if in_a_question else [str(fifo)]), stdin=f"/video {fifo}\n" if in_a_question else "")
    running.wait_for("waiting for ")
    if number is not None:
        running.send(number)
    done = running.end(ENDED_S)
    assert done.returncode == code, done.stderr
    if in_a_question:
        assert json.loads(done.stdout)["turns"] == [], "one signal ends it in order"


def test_one_ctrl_c_ends_a_video_whose_pipe_stalls_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, fifo = tmp_path / "clip.mkv", tmp_path / "fifo"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(100):
        writer.write(np.full((48, 64, 3), number, np.uint8))
    writer.release()
    os.mkfifo(fifo)
    over = threading.Event()

    def pipe() -> None:
        with open(fifo, "wb", buffering=0) as end:
            end.write(clip.read_bytes())
            over.wait(3 * ENDED_S)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if not over.wait(ENDED_S):
            os.kill(os.getpid(), signal.SIGINT)  # where one is not enough: the test fails, and ends

    see = Session.see

    def watched(session: Session, frames: list[Frame], interval: float | None = None) -> None:
        see(session, frames, interval)
        if session.meter.frames == 16:  # of 20
            threading.Timer(1, interrupt).start()

    monkeypatch.setattr(Session, "see", watched)
    threading.Thread(target=pipe, daemon=True).start()
    done = CliRunner().invoke(app, ["chat", "--video", str(fifo), "--json", "hi"])
    over.set()
    assert done.exit_code == 130, done.stderr
    result = json.loads(done.stdout)
    assert result["turns"] == []
    assert result["video"]["frames_seen"] >= 16
