"""An archive on disk, and the second look: what a bounded cache has lost is found again when asked."""

from __future__ import annotations

import functools
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from command import run, start

from edgemllm import policies
from edgemllm.archive.archive import Archive
from edgemllm.archive.index import Looks, fused, packed, unpacked
from edgemllm.archive.passages import Passages
from edgemllm.archive.pictures import encoded
from edgemllm.archive.session import ArchivedSession
from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.commands.recall.run import Stream, at_the_end
from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.launch import prepare
from edgemllm.media.frame import Frame
from edgemllm.media.subtitles import Cue, Subtitles
from edgemllm.models.chat import Sampling
from edgemllm.planning.request import Request
from edgemllm.session import Session

LECTURE = "edgemllm/assets/demo/lecture.mp4"
SLOTS = 48


@pytest.fixture(scope="module")
def family() -> Any:
    return prepare(Request()).open().family


@pytest.fixture(scope="module")
def stream(family: Any) -> Stream:
    """Some minutes with 10 slides, and two questions about what was never shown."""
    return Stream(family, slide_haystack(3, 160, 10, False))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Archive]:
    archive = Archive(tmp_path / "a.db")
    yield archive
    archive.close()


def opened(family: Any, archive: Archive, slots: int = SLOTS, **more: Any) -> ArchivedSession:
    launch = prepare(Request(policy="streaming-llm", kv_budget=str(slots)))
    session = launch.open(family=family, make=functools.partial(ArchivedSession, archive=archive, **more))
    assert isinstance(session, ArchivedSession)
    return session


def shares(session: Session, stream: Stream) -> tuple[float, list[bool]]:
    """The share of the slides that was known, whether what was never shown was refused, and never more than the budget."""
    answers = at_the_end(session, stream)
    assert answers.peak <= SLOTS
    known = [right for right, distance in zip(answers.right, answers.distances, strict=True) if distance is not None]
    unseen = [right for right, distance in zip(answers.right, answers.distances, strict=True) if distance is None]
    return sum(known) / len(known), unseen


def test_what_eviction_lost_is_found_again_within_the_budget(family: Any, stream: Stream, kept: Archive) -> None:
    without, _ = shares(prepare(Request(policy="streaming-llm", kv_budget=str(SLOTS))).open(family=family), stream)
    share, refused = shares(opened(family, kept), stream)
    assert without < 0.3
    assert share >= 0.9
    assert all(refused)


def test_a_second_look_holds_the_budget_under_every_policy(family: Any, stream: Stream, kept: Archive) -> None:
    frames = stream.haystack.items[:40]
    for name in ("edge", "inf-mllm", "h2o", "pyramidkv", "meda", "random"):
        launch = prepare(Request(policy=name, kv_budget="96"))
        session = launch.open(family=family, make=functools.partial(ArchivedSession, archive=kept))
        most = [0]

        def step(now: Session, most: list[int] = most) -> None:
            most[0] = max(most[0], *(layer.length for layer in now.cache.managed))

        session.on_step = step
        session.watch(frames)
        before = session.kv()["bytes"]
        assert "".join(session.ask("What number was with the red square?"))
        assert isinstance(session, ArchivedSession)
        assert session.looked.tokens > 0, name
        assert most[0] <= 96 or name in ("pyramidkv", "meda"), name  # whose layers are unequal
        assert session.kv()["bytes"] == before <= session.kv()["budget_bytes"], name
        assert all(type(layer.focus).__name__ != "Held" for layer in session.cache.managed), name


def test_chat_says_and_reports_what_it_looked_at_again_and_another_run_knows_it_without_the_video(tmp_path: Path) -> None:
    question = "What number was with the red square?"
    settings = ("--policy", "edge", "--kv-budget", "48", "--archive", str(tmp_path / "a.db"), "--json", "--no-focus")
    done = run("chat", "--video", LECTURE, *settings, question)
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)["turns"][0]
    assert turn["answer"] == "5"
    assert any(20 <= first <= 23 or 18 <= first <= 23 for first, _ in turn["recalled"])
    assert turn["recall_ms"] > 0
    assert turn["recall_tokens"] <= 48
    assert "looked again at 00:00:" in done.stderr
    assert "of our own at once" in done.stderr
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600
    again = run("chat", *settings, question)
    assert json.loads(again.stdout)["turns"][0]["answer"] == "5", again.stderr


def test_a_stream_keeps_its_archive_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    running = start(
        "stream", LECTURE, "--live", "--kv-budget", "64", "--policy", "edge", "--archive", str(path),
        "--at", "3 What is on the screen now?", "--jsonl",
    )  # fmt: skip
    running.wait_for('"event": "answer"')
    event = json.loads(next(line for line in running.stdout.splitlines() if '"answer"' in line))
    running.send(signal.SIGKILL)
    running.end()
    assert "recalled" in event
    archive = Archive(path, writing=False)
    archive.database.check()
    seconds = [place.first for places, _ in archive.frame_blocks() for place in places]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= event["video_s"] - 1.5
    assert archive.counts()["turns"] == 1
    archive.close()


def test_an_archive_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, family: Any, kept: Archive) -> None:
    def refused(path: Path, kind: type[EdgeError], words: str, writing: bool = True) -> None:
        with pytest.raises(kind, match=words) as caught:
            Archive(path, writing=writing)
        assert "\n" not in caught.value.message
        assert caught.value.hint

    refused(kept.path, UsageError, "in use by another session")
    refused(tmp_path, UsageError, "no archive")
    refused(tmp_path / "none" / "a.db", MissingError, "no folder")
    refused(tmp_path / "none.db", MissingError, "no archive", writing=False)
    (tmp_path / "text.db").write_text("no database at all" * 100)
    refused(tmp_path / "text.db", MissingError, "damaged, or no archive")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    refused(tmp_path / "other.db", MissingError, "no archive")
    if os.geteuid():
        (tmp_path / "closed").mkdir(0o500)
        refused(tmp_path / "closed" / "a.db", UsageError, "cannot be written to")
    opened(family, kept)
    kept.database.about = {"weights": "another's", "model": "other-3b"}
    with pytest.raises(UsageError, match="made with other-3b"):
        opened(family, kept)


def filled(archive: Archive, seconds: int, size: int = 3000) -> int:
    medium = archive.medium("camera")
    for second in range(seconds):
        archive.add_frames(medium, [(float(second), bytes(size), packed(np.ones((4, 1, 8), np.float32)))])
    return medium


def kept_seconds(archive: Archive) -> list[float]:
    return [place.first for places, _ in archive.frame_blocks() for place in places]


def test_a_full_archive_keeps_every_part_of_the_stream_more_thinly(tmp_path: Path) -> None:
    said: list[str] = []
    archive = Archive(tmp_path / "a.db", limit=4 << 20, say=said.append)
    filled(archive, 4000)
    assert archive.database.nbytes <= 4 << 20
    seconds = kept_seconds(archive)
    assert seconds[0] == 0
    assert seconds[-200:] == [float(second) for second in range(3800, 4000)]
    assert max(np.diff(seconds)) <= 16
    assert len(said) == 1
    assert "archive full" in said[0]
    archive.close()


def test_a_full_disk_ends_archiving_with_one_line_and_not_the_session(tmp_path: Path) -> None:
    said: list[str] = []
    archive = Archive(tmp_path / "a.db", say=said.append)
    pages = archive.database.sql.execute("PRAGMA page_count").fetchone()[0]
    archive.database.sql.execute(f"PRAGMA max_page_count = {pages + 40}")
    filled(archive, 100)
    assert len(said) == 1
    assert "archiving ends here" in said[0]
    assert "full" in said[0]
    assert 0 < len(kept_seconds(archive)) < 100
    archive.close()
    Archive(tmp_path / "a.db", writing=False).database.check()


def test_a_frame_of_the_same_second_and_text_of_the_same_place_are_kept_once(kept: Archive) -> None:
    medium = filled(kept, 5)
    filled(kept, 5)
    assert kept.counts()["frames"] == 5
    passage = {"first": 0, "last": 10, "line": 1, "time": None, "text": "The lamp.", "keys": None}
    kept.add_passages(medium, [passage])
    kept.add_passages(medium, [passage | {"last": 20, "text": "The lamp was lit."}])
    assert kept.counts()["passages"] == 1
    assert [kept.text(place) for place in kept.matching("Who lit a lamp?")] == ["The lamp was lit."]
    assert kept.delete(medium, 1, 3) == 4
    assert kept_seconds(kept) == [0, 4]


def test_passages_are_the_whole_text_cut_at_sentences() -> None:
    text = "".join(f"The sailor told story {number}, and a longer one as well. " for number in range(100))
    passages = Passages(1, 128)
    found: dict[int, dict[str, Any]] = {}
    for start_at in range(0, len(text), 700):
        piece = text[start_at : start_at + 700]
        found |= {
            each["first"]: each for each in passages.add(piece, [1] * len(piece), np.ones((len(piece), 1, 8), np.float32))
        }
    assert "".join(each["text"] for _, each in sorted(found.items())) == text
    assert sum(each["text"].endswith(".") for each in found.values()) > len(found) / 2


def test_what_was_said_is_archived_with_its_second_and_looked_at_again(family: Any, stream: Stream, kept: Archive) -> None:
    session = opened(family, kept, slots=96, share=0.5)
    session.source = "lecture"
    session.watch(
        iter(stream.haystack.items[:60]), Subtitles([Cue(20.0, 24.0, "The keys are in a tin box."), Cue(70.0, 71.0, "End")])
    )
    place, *_ = kept.matching("Where are the keys?")
    assert (kept.media()[place.medium], place.first, kept.text(place)) == (
        "lecture (subtitles)",
        19.0,
        "The keys are in a tin box.",
    )
    "".join(session.ask("Where are the keys?"))
    assert (19.0, 19.001) in session.looked.spans
    assert "00:00:19" in session.looked.note()


def test_keys_lead_to_their_place_and_ranks_are_fused() -> None:
    rng = np.random.default_rng(0)
    places = [rng.normal(size=(4, 1, 8)).astype(np.float32) for _ in range(50)]
    places = [place / np.linalg.norm(place, axis=-1, keepdims=True) for place in places]
    keys, starts = unpacked([packed(place) for place in places], 1, 8)
    for peak in (True, False):
        looks = Looks(8 * places[17][2], peak)
        looks.add(keys[: starts[30], 0], starts[:30])
        looks.add(keys[starts[30] :, 0], starts[30:] - starts[30])
        assert int(looks.scores().argmax()) == 17
    assert fused(["a", "b"], ["b", "c"])[0] == "b"


def test_a_resumed_text_stream_continues_its_archive_and_an_older_copy_is_refused(tmp_path: Path) -> None:
    text, state, path = tmp_path / "app.log", tmp_path / "app.edge", tmp_path / "a.db"
    lines = "".join(f"Lamp {number} was lit by keeper {number % 7}.\n" for number in range(60))
    options = (
        "--text", str(text), "--timeout", "1s", "--kv-budget", "96", "--policy", "streaming-llm", "--max-tokens", "4",
        "--save", str(state), "--resume", str(state), "--archive", str(path), "--jsonl",
    )  # fmt: skip
    text.write_text(lines)
    done = run("stream", *options, "--at", "end Who lit lamp 3?")
    assert done.returncode == 0, done.stderr
    event = json.loads(next(line for line in done.stdout.splitlines() if '"answer"' in line))
    assert event["recalled"][0][0] <= lines.index("Lamp 3 ") < event["recalled"][0][1]
    older = path.read_bytes()
    text.write_text(lines + lines.replace("Lamp", "Candle"))
    done = run("stream", *options)
    assert done.returncode == 0, done.stderr
    archive = Archive(path, writing=False)
    places = archive.within(1, 0, 10**9)
    assert "".join(archive.text(place) for place in places) == text.read_text()
    assert archive.matching("Candle 20")[0].line in range(78, 83)
    archive.close()
    path.write_bytes(older)
    done = run("stream", *options)
    assert done.returncode == 3
    assert "older copy" in done.stderr
    path.unlink()
    done = run("stream", *options)
    assert done.returncode == 2
    assert "another one" in done.stderr


def test_the_archive_command_lists_searches_exports_deletes_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    archive = Archive(path)
    medium = archive.medium("camera")
    jpeg = encoded(np.zeros((90, 160, 3), np.uint8))
    archive.add_frames(medium, [(float(second), jpeg, None) for second in range(100)])
    passage = {"first": 0, "last": 20, "line": 3, "time": None, "text": "The lamp was lit.", "keys": None}
    archive.add_passages(archive.medium("book.txt"), [passage])
    archive.add_turn(12.0, "Who lit it?", "the keeper", [(1.0, 2.0)])
    archive.close()
    listed = run("archive", str(path)).stdout
    assert "camera" in listed
    assert "00:01:39" in listed
    assert "Who lit it?  the keeper" in listed
    found = json.loads(run("archive", str(path), "--json").stdout)
    assert [each["frames"] for each in found["media"]] == [100, 0]
    assert found["turns"][0]["recalled"] == [[1.0, 2.0]]
    assert "line 3  book.txt  The lamp was lit." in run("archive", str(path), "--search", "lamps").stdout
    run("archive", str(path), "--export", str(tmp_path / "out"), "--around", "00:00:50", "--source", "camera")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(files) == 11
    assert files[0] == "00-00-45.000.jpg"
    unclear = run("archive", str(path), "--delete", "--start", "10", "--end", "19")
    assert unclear.returncode == 2
    assert "--source camera or book.txt" in unclear.stderr
    run("archive", str(path), "--delete", "--start", "10", "--end", "19", "--source", "camera")
    assert "90 frames" in run("archive", str(path), "--check").stdout
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(range(256)) * 64)
    damaged = run("archive", str(path), "--check")
    assert damaged.returncode == 3
    assert damaged.stderr.count("error:") == 1
    assert "damaged" in damaged.stderr
    assert run("archive", str(tmp_path / "none.db")).returncode == 3


def test_a_wrong_limit_or_share_is_refused(tmp_path: Path) -> None:
    runs: list[Callable[[], Any]] = [
        lambda: run("chat", "--archive", str(tmp_path / "a.db"), "--archive-limit", "3", "Is there light?"),
        lambda: run("chat", "--archive", str(tmp_path / "a.db"), "--archive-share", "2", "Is there light?"),
    ]
    for each in runs:
        done = each()
        assert done.returncode == 2
        assert "--archive-" in done.stderr
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("make", [tiny.qwen2_5_vl, tiny.qwen3_5, tiny.gemma4], ids=lambda make: make.__name__)
def test_families_that_pair_frames_or_have_other_layers_can_keep_an_archive(make: Any, kept: Archive) -> None:
    family = make().use(tiny.NAME).family
    session = ArchivedSession(family, policies.build("edge", ()), 100, 32, archive=kept)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 60, 3)).astype(np.uint8)
    session.watch([Frame(each, float(second), second) for second, each in enumerate(pixels)])
    assert "".join(session.ask("Where is it?", Sampling(max_tokens=3))) is not None
    assert kept.counts() == {"frames": 24, "passages": 0, "turns": 1}
    assert sum(len(places) for places, _ in kept.frame_blocks()) == 24
    assert session.looked.spans
    assert 0 < session.looked.tokens <= 50


def test_recall_has_the_newest_frames_alone_as_a_control_beside_any_memory() -> None:
    settings = ("--tokens", "320", "--facts", "4", "--streams", "1", "--kv-budget", "64", "--between", "static")
    done = run("recall", "--policy", "recent-frames,edge", *settings, "--json")
    assert done.returncode == 0, done.stderr
    runs = {each["policy"]: each for each in json.loads(done.stdout)["runs"]}
    assert set(runs) == {"recent-frames", "edge"}
    assert runs["recent-frames"]["recent"]["share"] == 1
    assert runs["recent-frames"]["old"]["share"] == 0
    refused = run("recall", "--policy", "recent-frames", *settings, "--needles", "text")
    assert refused.returncode == 2
    assert "only a video has frames" in refused.stderr
