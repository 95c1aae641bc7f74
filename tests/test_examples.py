"""The scripts that people start from run as they stand, on the demo model."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import program

from edgemllm.models.loading import DEMO

TOP = Path(__file__).parents[1]
LECTURE = DEMO / "lecture.mp4"
SMALL = ("--kv-budget", "96", "--chunk", "16", "--max-tokens", "4")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """`edgemllm` on the PATH, as after an installation."""
    folder = tmp_path / "bin"
    folder.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EDGEMLLM_")}
    with program(folder):
        yield {**clean, "PATH": f"{folder}:{os.environ['PATH']}"}


def script(name: str, *arguments: object, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOP / "scripts" / "examples" / name), *map(str, arguments)],
        env={**environment, **more}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_watch_door_appends_alerts_and_goes_on_where_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    alerts = tmp_path / "alerts.tsv"
    alerts.write_text("2026-01-01T00:00:00+0000\t00:00:01\tyes\n")
    more = {"QUESTION": "Was there a red circle?", "EVERY": "6s"}
    done = script("watch_door.sh", LECTURE, alerts, *SMALL, "--end", "8", environment=environment, ALERT="^never", **more)
    assert done.returncode == 0, done.stderr
    assert len(alerts.read_text().splitlines()) == 1
    done = script("watch_door.sh", LECTURE, alerts, *SMALL, "--end", "20", environment=environment, ALERT=".", **more)
    assert "continuing from" in done.stderr
    assert [line.split("\t")[1] for line in alerts.read_text().splitlines()][1:] == ["00:00:12", "00:00:18"]


def test_caption_folder_writes_subtitles_and_tells_what_it_could_not(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "my videos"
    folder.mkdir()
    shutil.copy(LECTURE, folder / "a lecture.mp4")
    (folder / "damaged.MP4").write_bytes(LECTURE.read_bytes()[:50_000])
    (folder / "notes.txt").write_text("no video")
    done = script("caption_folder.sh", folder, *SMALL, "--end", "12", environment=environment, EVERY="5s")
    assert done.returncode == 6, done.stderr
    assert "1 videos could not be captioned" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a lecture.mp4", "a lecture.srt", "damaged.MP4", "notes.txt"]
    assert (folder / "a lecture.srt").read_text().startswith("1\n00:00:05,000 --> 00:00:10,000\n")
    (folder / "damaged.MP4").unlink()
    assert script("caption_folder.sh", folder, environment=environment).returncode == 0


def test_nightly_perplexity_fails_when_it_gets_worse(environment: dict[str, str], tmp_path: Path) -> None:
    text, record = tmp_path / "book.txt", tmp_path / "record.tsv"
    text.write_text("It was a bright cold day in April, and the clocks were striking. " * 60)
    arguments = (text, record, "--kv-budget", "96", "--chunk", "16")
    done = script("nightly_perplexity.sh", *arguments, environment=environment, TOKENS="200")
    assert done.returncode == 0, done.stderr
    assert "+0.00%" in done.stdout
    [first] = record.read_text().splitlines()
    assert float(first.split("\t")[1]) > 1
    record.write_text("2026-01-01T00:00:00+0000\t1.01\n")
    done = script("nightly_perplexity.sh", *arguments, environment=environment, TOKENS="200")
    assert done.returncode == 1
    assert len(record.read_text().splitlines()) == 2
