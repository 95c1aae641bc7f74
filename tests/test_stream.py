"""`edgemllm stream` as a user meets it: answers on the way, sleep and wake, cameras that go, disks that fill."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from camera import Camera, picture
from command import WAITING, Running, run, start, start_with_a_full
from typer.testing import CliRunner, Result

from edgemllm import policies, screen, session_file
from edgemllm.cli.main import app
from edgemllm.commands.stream.answers import Answers, SubtitleAnswers, TextAnswers
from edgemllm.commands.stream.frames import FrameStream
from edgemllm.commands.stream.rounds import Rounds
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import EdgeError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.feed import Feed
from edgemllm.media.frame import Frame
from edgemllm.media.similarity import Similarity
from edgemllm.media.source import Source
from edgemllm.models import loading
from edgemllm.models.chat import Sampling
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.loading import DEMO
from edgemllm.screen import Display
from edgemllm.session import Session

LECTURE = str(DEMO / "lecture.mp4")
QUESTION = "What is on the screen now?"
ASKING = ("--ask", QUESTION, "--max-tokens", "3", "--kv-budget", "96", "--chunk", "16")


@pytest.fixture(scope="module", autouse=True)
def demo() -> Iterator[ModelFamily]:
    """The demo model, loaded once; commands that run in this process get it when they load the same."""
    load = loading.load
    family = load(loading.locate("demo"))

    def loaded(checkpoint: Any, quant: str, dtype: str, device: str, trust: bool, detail: Detail, *vision: Any) -> ModelFamily:
        same = (checkpoint.name, quant, dtype, device, detail) == ("demo", "none", "float32", "cpu", ANY)
        return family if same else load(checkpoint, quant, dtype, device, trust, detail, *vision)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", loaded)
        yield family


def invoke(*arguments: str, stdin: str | None = None, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["stream", *arguments], input=stdin)
    assert done.exit_code == code, done.output + done.stderr
    assert "Traceback" not in done.output
    return done


def events(text: str, kind: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [event for event in found if kind in (None, event["event"])]


def wait_for(running: Running, kind: str, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Read events into `seen` up to the next of a kind."""
    ends = time.monotonic() + WAITING
    while time.monotonic() < ends:
        alive = running.process.is_alive()
        whole = running.stdout.rpartition("\n")[0]
        for event in events(whole)[len(seen) :]:
            seen.append(event)
            if event["event"] == kind:
                return event
        if not alive:
            break
        time.sleep(0.02)
    raise AssertionError(f"no {kind}: {seen[-3:]} {running.stderr}")


# ---- answers -------------------------------------------------------------------------------------------------------


def test_answers_come_with_their_times_and_the_cache_stays_in_its_budget() -> None:
    done = invoke(LECTURE, *ASKING, "--every", "20s", "--at", "00:00:30", "Was there a red circle?", "--end", "70", "--jsonl")
    found = events(done.stdout)
    answers = [event for event in found if event["event"] == "answer"]
    assert [(event["video_s"], event["question"]) for event in answers] == [
        (20.0, QUESTION), (30.0, "Was there a red circle?"), (40.0, QUESTION), (60.0, QUESTION),
    ]  # fmt: skip
    assert found[0]["event"] == "start"
    assert {"model", "policy", "source"} <= set(found[0])
    assert found[-1] == {"schema": "edgemllm/1", "event": "end", "exit_code": 0}
    assert {event["schema"] for event in found} == {"edgemllm/1"}
    stats = [event for event in found if event["event"] == "stats"]
    assert len({event["kv"]["bytes"] for event in [*answers, *stats]}) == 1
    assert stats[-1]["kv"]["evicted_tokens"] > 0
    assert stats[-1]["kv"]["bytes"] <= stats[-1]["kv"]["budget_bytes"]
    assert stats[-1]["video"]["frames_seen"] == 70
    assert stats[-1]["video"]["frames_dropped"] == 0
    assert "tokens evicted; remembering" in done.stderr
    assert "70 frames watched, 4 questions answered" in done.stderr


def test_text_answers_are_three_fields_and_stats_draw_the_strip() -> None:
    done = invoke(
        LECTURE, *ASKING, "--end", "24", "--at", "end", "Which shapes were red?", stdin="/stats\nWas there a red circle?\n"
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(len(fields) == 3 for fields in lines)
    assert {fields[1] for fields in lines} == {"Was there a red circle?", "Which shapes were red?"}
    assert "00:00:00 |" in done.stderr
    assert "▮" in done.stderr
    assert "  machine " in done.stderr


def test_json_is_one_object() -> None:
    done = invoke(LECTURE, *ASKING, "--every", "10s", "--end", "24", "--json", "-q")
    result = json.loads(done.stdout)
    assert [turn["video_s"] for turn in result["turns"]] == [10.0, 20.0]
    assert result["command"] == "stream"
    assert result["exit_code"] == 0
    assert result["kv"]["bytes"] <= result["kv"]["budget_bytes"]
    assert done.stderr == ""


def test_subtitles_last_until_the_next_answer(capsys: pytest.CaptureFixture[str]) -> None:
    for vtt in (False, True):
        out = SubtitleAnswers(vtt)
        out.start()
        out.answer("q", "one\n\ntwo --> three <b>", 10.0, {})
        out.answer("q", "four", 20.5, {})
        out.answer("r", "five", 20.5, {})
        out.close(0, video_s=30.0)
    written = capsys.readouterr().out
    srt, vtt_text = written.split("WEBVTT\n\n")
    assert srt == ("1\n00:00:10,000 --> 00:00:20,500\none\ntwo → three <b>\n\n2\n00:00:20,500 --> 00:00:30,000\nfour\nfive\n\n")
    assert "00:00:10.000 --> 00:00:20.500\none\ntwo → three &lt;b>" in vtt_text


def test_similar_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number // 4 * 9))
    done = invoke(str(tmp_path), *ASKING, "--timeout", "1", "--skip-similar", "0.98", "--jsonl")
    video = events(done.stdout, "stats")[-1]["video"]
    assert (video["frames_seen"], video["frames_skipped"]) == (3, 9)
    assert "3 frames watched, 9 skipped as similar" in done.stderr


def test_images_on_standard_input() -> None:
    images = b"".join(picture(number) for number in range(6))
    done = run("stream", "-", *ASKING, "--every", "2s", "--jsonl", "-q", stdin=images)
    assert [event["video_s"] for event in events(done.stdout, "answer")] == [2.0, 4.0]


# ---- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no such file": ["3", "no video", "none.mp4"],
    "beyond the end": ["2", "beyond the end", LECTURE, "--at", "00:10:00", "q"],
    "every": ["2", "without a question", LECTURE, "--every", "3s"],
    "two outputs": ["2", "--json and --srt", LECTURE, "--json", "--srt"],
    "no folder to save in": ["3", "mkdir", LECTURE, "--save", "none/state.edge"],
    "no session": ["3", "no saved session", LECTURE, "--resume", "none.edge"],
    "similarity": ["2", "no similarity", LECTURE, "--skip-similar", "2"],
    "terminal": ["6", "cannot be opened", "http://127.0.0.1:9/video.mjpg"],
    "retries": ["2", "retries", LECTURE, "--retries", "-2"],
    "policy": ["2", "unknown policy", LECTURE, "--policy", "no-such"],
    "budget": ["4", "at least", LECTURE, "--kv-budget", "3"],
    "empty": ["2", "an argument is empty", ""],
    "empty option": ["2", "--resume is empty", LECTURE, "--resume", ""],
    "a device to save to": ["2", "a device, pipe or socket", LECTURE, "--save", "/dev/null"],
    "nothing came": ["6", "not one frame", ".", "--timeout", "0.3"],
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line_and_its_exit_code(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, words, *arguments = MISTAKES[case]
    done = invoke(*arguments, code=int(code))
    assert words in done.stderr
    assert done.stdout == ""


def test_a_wrong_or_damaged_session_is_refused_with_a_reason(demo: ModelFamily, tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    invoke(LECTURE, *ASKING, "--end", "16", "--save", str(path), "-q")
    for wrong, words in (("--policy=window", "policy"), ("--dtype=bfloat16", "dtype"), ("--kv-budget=64", "64")):
        assert words in invoke(LECTURE, *ASKING, "--resume", str(path), wrong, code=2).stderr
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2] + b"\x00\x01\x02" + whole[len(whole) // 2 + 3 :], b"hello"):
        path.write_bytes(damaged)
        assert "damaged" in invoke(LECTURE, *ASKING, "--resume", str(path), code=3).stderr
    chat = tmp_path / "chat.edge"
    session_file.save(Session(demo, policies.build("inf-mllm"), 96, 16), chat)
    assert "of no stream" in invoke(LECTURE, *ASKING, "--resume", str(chat), code=2).stderr


# ---- sleep and wake ------------------------------------------------------------------------------------------------


class Recorder(Answers):
    """Keeps the answers."""

    def __init__(self) -> None:
        self.found: list[tuple[float, str, str]] = []

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        self.found.append((seconds, question, answer))


class Scenes:
    """Frames of a source that never waits: every third hardly differs from the one before."""

    path = "scenes"

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.first, self.count):
            seed = index - 1 if index % 3 == 2 else index
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            yield Frame(np.kron(pixels, np.ones((12, 12, 1), np.uint8)), float(index), index)


def build(
    session: Session, first: int, count: int, save_wanted: Callable[[], bool] = lambda: False
) -> tuple[FrameStream, Recorder]:
    out = Recorder()
    schedule = Schedule.parse([QUESTION, "Was there a red circle?"], ["4s", "7s"], [])
    rounds = Rounds(session, schedule, Sampling(max_tokens=4), out, Display("none"))
    feed = Feed(Scenes(first, count), 8, full_batches=True)
    stream = FrameStream(rounds, Source("scenes"), feed, Similarity(0.98), save_wanted=save_wanted)
    return stream, out


@pytest.mark.parametrize("case", [*policies.names(), "inf-mllm window=prompt longest=20"])
def test_a_stream_put_to_sleep_and_woken_goes_on_as_without_the_break(demo: ModelFamily, case: str, tmp_path: Path) -> None:
    name, *settings = case.split()
    policy, path = policies.build(name, settings), tmp_path / "state.edge"
    budget = 72 if policy.bounded else None

    def fresh() -> Session:
        return Session(demo, policy, budget, chunk=16)

    unbroken = fresh()
    stream, whole = build(unbroken, 0, 28)
    stream.run()

    asleep = fresh()
    stream, before = build(asleep, 0, 28)
    stream.save_to = path
    stream.save_wanted = lambda: len(before.found) == 4 and not path.exists()  # as SIGUSR1 in the middle of the stream
    stream.rounds.stopping = path.exists  # and then the power goes
    stream.run()

    woken = fresh()
    state = session_file.run_of(path)
    session_file.load(woken, path)
    stream, after = build(woken, state["place"]["index"] + 1, 28)
    stream.resume(state)
    stream.run()
    assert len(after.found) > 3
    assert before.found + after.found == whole.found
    assert woken.last is not None
    assert unbroken.last is not None
    with torch.inference_mode():
        assert torch.equal(demo.logits(woken.last), demo.logits(unbroken.last))
    assert woken.kv() == unbroken.kv()
    if budget is not None:
        assert path.stat().st_size < asleep.kv()["budget_bytes"] * 1.05 + 30_000


def test_kill_9_after_a_save_loses_only_what_came_behind_it(tmp_path: Path) -> None:
    path, common = tmp_path / "state.edge", (LECTURE, *ASKING, "--every", "8s", "--end", "60", "--jsonl", "-q")
    whole = [event["answer"] for event in events(invoke(*common).stdout, "answer")]
    running, seen = start("stream", *common, "--save", str(path)), []
    wait_for(running, "answer", seen)
    wait_for(running, "answer", seen)
    running.send(signal.SIGUSR1)
    wait_for(running, "saved", seen)
    running.send(signal.SIGKILL)
    running.end()
    before = [event["answer"] for event in seen if event["event"] == "answer"]
    after = events(invoke(*common, "--resume", str(path)).stdout, "answer")
    assert before + [event["answer"] for event in after] == whole
    assert len(after) >= 3


def test_sigterm_during_an_answer_flushes_and_the_question_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    common = (LECTURE, *ASKING, "--every", "8s", "--end", "12", "--save", str(path), "--resume", str(path))
    running = start("stream", *common, "--max-tokens", "100000", "--temperature", "3")
    while len(running.stdout) < 60 and running.process.is_alive():
        time.sleep(0.02)  # the time stamp, the question, and the beginning of an answer without end
    running.send(signal.SIGTERM)
    running.send(signal.SIGTERM)  # as `timeout` does
    ended = running.end()
    assert ended.returncode == 143, ended.stderr
    assert ended.stdout.startswith(f"00:00:08\t{QUESTION}\t")
    assert ended.stdout.endswith("\n")
    assert "saved to" in ended.stderr
    assert "--resume asks it again" in ended.stderr
    done = invoke(*common, "--jsonl")
    assert "continuing from" in done.stderr
    answers = events(done.stdout, "answer")
    assert [(event["video_s"], event["question"]) for event in answers] == [(8.0, QUESTION)]
    assert events(done.stdout, "stats")[-1]["video"]["frames_seen"] == 12


def test_a_full_disk_is_told_and_the_earlier_file_stays(demo: ModelFamily, tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    session = Session(demo, policies.build("streaming-llm"), 96, 16)
    stream, _ = build(session, 0, 16)
    stream.run()
    stream.save(path)
    earlier = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(EdgeError, match="cannot save the session") as caught:
            stream.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "an earlier file is as it was" in caught.value.hint
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_a_session_is_saved_through_a_link_and_replaces_nothing_but_files(demo: ModelFamily, tmp_path: Path) -> None:
    session = Session(demo, policies.build("streaming-llm"), 96, 16)
    (tmp_path / "disk").mkdir()
    target, link, fifo = tmp_path / "disk" / "target.edge", tmp_path / "state.edge", tmp_path / "fifo"
    link.symlink_to(target)
    session_file.save(session, link)
    assert link.is_symlink()
    assert target.stat().st_size > 0
    os.mkfifo(fifo)
    with pytest.raises(EdgeError, match="pipe"):
        session_file.save(session, fifo)
    assert fifo.is_fifo()


def test_a_resumed_stream_keeps_its_budget_or_reports_another(tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    invoke(LECTURE, *ASKING, "--end", "16", "--save", str(path), "-q")
    going_on = (LECTURE, "--chunk", "16", "--max-tokens", "3", "--end", "28", "--resume", str(path), "--jsonl")
    done = invoke(*going_on, "--ask", QUESTION, "--every", "10s")
    assert events(done.stdout, "stats")[-1]["kv"]["budget_tokens"] == 96
    assert [event["video_s"] for event in events(done.stdout, "answer")] == [20.0], "not second 10, which is over"
    done = invoke(*going_on, "--kv-budget", "128", "--at", "10", QUESTION)
    assert events(done.stdout, "stats")[-1]["kv"]["budget_tokens"] == 128
    assert "the KV budget is 128 tokens per layer now, it was 96" in done.stderr
    assert "not asked, 00:00:10 is over" in done.stderr


@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_full_disk_of_the_log_or_the_answers_leaves_the_session_saved(full: str, tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    arguments = ("stream", LECTURE, *ASKING, "--every", "8s", "--end", "20", "--save", str(path))
    done = start_with_a_full(full, *arguments).end()
    place = session_file.run_of(path)["place"]
    if full == "stderr":
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 2
        assert place["time"] == 19.0
    else:
        assert done.returncode == 1
        assert "error: standard output: no space left on device" in done.stderr
        assert "unexpected" not in done.stderr


def test_the_meter_keeps_out_of_answers_that_go_to_the_same_file(
    demo: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0.0)
    stream, _ = build(Session(demo, policies.build("inf-mllm"), 96, 16), 0, 16)
    stream.rounds.out = stream.out = TextAnswers()
    stream.rounds.display = stream.display = display = Display("plain")
    stream.session.on_step = display.step
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        monkeypatch.setattr(sys, "stderr", log)
        stream.run()
        monkeypatch.undo()
    lines = (tmp_path / "log").read_text().splitlines()
    answers = [line for line in lines if "\t" in line]
    assert len(answers) == stream.rounds.answers > 2
    assert all(len(line.split("\t")) == 3 and "evicted" not in line for line in answers)
    assert any("evicted" in line for line in lines)


# ---- cameras -------------------------------------------------------------------------------------------------------


def test_a_camera_is_watched_across_a_gap_and_the_gap_is_told() -> None:
    camera, seen = Camera(), []
    running = start("stream", camera.address, *ASKING, "--every", "1s", "--fps", "4", "--jsonl")
    try:
        wait_for(running, "answer", seen)
        camera.unplug()
        wait_for(running, "lost", seen)
        time.sleep(1.0)
        camera.plug_in()
        back = wait_for(running, "back", seen)
        wait_for(running, "answer", seen)
        running.send(signal.SIGTERM)
        done = running.end()
    finally:
        running.process.kill()
        camera.unplug()
    seen = events(done.stdout)
    assert done.returncode == 143, done.stderr
    assert back["gap_s"] > 1.0
    video = [event for event in seen if event["event"] == "stats"][-1]["video"]
    assert video["frames_missed"] == back["frames_missed"] > 0
    assert video["frames_seen"] > 4
    assert "connecting again" in done.stderr
    assert "is back after" in done.stderr
    assert seen[-1] == {"schema": "edgemllm/1", "event": "end", "exit_code": 143}


def test_a_model_slower_than_the_camera_drops_and_says_so(demo: ModelFamily, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(demo, policies.build("inf-mllm"), 96, 16)
    stream, out = build(session, 0, 0)
    stream.feed = Feed(Scenes(0, 4000), 8, live=True)
    stream.rounds.schedule = Schedule.parse([QUESTION], ["500s"], [])
    stream.similarity, stream.rounds.display = None, Display("plain")
    stream.display = stream.rounds.display
    stream.run()
    meter = session.meter
    assert meter.frames + meter.dropped == 4000
    assert meter.dropped > 0
    assert len(out.found) > 0
    assert f"{meter.frames} frames watched, {meter.dropped} dropped, because the model was busy" in capsys.readouterr().err


def test_questions_typed_while_it_runs_are_answered_on_the_way(demo: ModelFamily) -> None:
    reader, writer = os.pipe()
    from edgemllm.media.typed_lines import TypedLines

    with os.fdopen(reader) as stream_in, os.fdopen(writer, "w") as typing:
        stream, out = build(Session(demo, policies.build("inf-mllm"), 96, 16), 0, 0)
        stream.feed, stream.lines = Feed(Scenes(0, 600), 8, paced=True, live=True), TypedLines(stream_in)
        stream.rounds.schedule = Schedule()

        def type_in() -> None:
            while stream.session.meter.frames < 4:
                time.sleep(0.05)
            typing.write("Was there a red circle?\n")
            typing.flush()
            while not out.found:
                time.sleep(0.05)
            typing.write("/exit\n")
            typing.flush()

        thread = threading.Thread(target=type_in, daemon=True)  # a failing run answers nothing, and pytest is to end
        thread.start()
        stream.run()
        thread.join()
    [(seconds, question, _)] = out.found
    assert question == "Was there a red circle?"
    assert 0 < seconds < 600
