"""`edgemllm batch --ray`: the same lines as in one process, each once, whatever dies."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import Running, run, start
from slide_clips import write_clips

QUESTION = "What is on the screen now?"


def answers(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file by their ids, without what differs from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    varying = ("seconds", "attempts")
    return sorted(({key: line[key] for key in line if key not in varying} for line in lines), key=lambda line: str(line["id"]))


def kill_a_worker(running: Running) -> None:
    """End an actor that has the model, as the kernel does when memory runs out."""
    for process in psutil.Process(running.process.pid).children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Map"):
            process.send_signal(signal.SIGKILL)
            return
    raise AssertionError("no worker")


@pytest.mark.slow
def test_two_workers_answer_as_one_process_does_and_nothing_is_lost_with_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs the extra ray")
    write_clips(tmp_path / "clips", 10)
    words = ("batch", str(tmp_path / "clips"), str(tmp_path / "gone.avi"), "--ask", QUESTION, "--max-tokens", "12", "-o")
    assert run(*words, str(tmp_path / "here.jsonl")).returncode == 3
    there = tmp_path / "there.jsonl"
    running = start(*words, str(there), "--ray", "--workers", "2", RAY_worker_niceness="0")
    running.wait_for("2 workers on Ray")
    while not (there.exists() and there.read_text()):
        assert running.process.is_alive(), running.stderr
        time.sleep(0.02)
    kill_a_worker(running)
    done = running.end()
    assert done.returncode == 3, done.stderr
    assert answers(there) == answers(tmp_path / "here.jsonl")


def test_an_address_where_no_ray_is_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    [clip] = write_clips(tmp_path, 1)
    done = run("batch", str(clip), "--ask", QUESTION, "--ray", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ray 127.0.0.1:1: no Ray cluster answers there (connection refused)")
