"""`edgemllm batch`: a line per video whatever happens, resumed without loss, never mixed with another job."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run, start
from slide_clips import write_clip, write_clips

import edgemllm
from edgemllm.batch import Answer
from edgemllm.batch.answers_file import AnswersFile
from edgemllm.batch.fleet import check_extra
from edgemllm.batch.job import Job
from edgemllm.batch.manifest import find
from edgemllm.batch.seats import Seats, seats
from edgemllm.batch.weights import fingerprint
from edgemllm.batch.work import Work
from edgemllm.cli.batch import _addressed
from edgemllm.errors import DoesNotFitError, EdgeError, MissingError, UsageError
from edgemllm.media import slides
from edgemllm.planning.request import Request

QUESTION = "What is on the screen now?"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 3)
    return folder


def test_a_batch_answers_as_chat_does_and_each_line_has_the_fields_of_the_contract(clips: Path, tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_text("The secret number is 4.\n" * 20)
    rows = [{"id": "first", "video": str(clips / "00.avi")}, {"text": "note.txt", "questions": "What is it?", "other": 1}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    asked = ["--ask", QUESTION, "--ask", "Is it red?", "--max-tokens", "12"]
    done = run("batch", str(tmp_path / "list.jsonl"), *asked, "--kv-budget", "512")
    assert done.returncode == 0, done.stderr
    video, read = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"schema", "command", "id", "answers", "kv", "seconds", "error"} <= set(video)
    assert (video["schema"], video["command"], video["id"], read["id"]) == ("edgemllm/1", "batch", "first", "note.txt")
    assert video["error"] is None
    assert video["kv"]["budget_tokens"] == 512
    assert video["seconds"] > 0
    options = ("--max-tokens", "12", "--kv-budget", "512", "--json")
    chat = json.loads(run("chat", "--video", str(clips / "00.avi"), *options, QUESTION, "Is it red?").stdout)
    assert video["answers"] == [{key: turn[key] for key in ("question", "answer")} for turn in chat["turns"]]
    assert video["kv"] == chat["kv"]
    chat = json.loads(run("chat", "--text", str(text), *options, "What is it?").stdout)
    assert read["answers"] == [{"question": "What is it?", "answer": chat["turns"][0]["answer"]}]


def test_a_corrupt_and_a_missing_video_are_lines_and_resume_computes_only_them(clips: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.avi"
    bad.write_bytes(b"RIFF\0\0\0\0AVI nothing")
    out = tmp_path / "answers.jsonl"
    words = ("batch", str(clips), str(bad), str(tmp_path / "gone.avi"), "--ask", QUESTION, "-o", str(out))
    done = run(*words)
    assert done.returncode == 6, done.stderr
    assert done.stdout == ""
    first = {line["id"]: line for line in lines_of(out)}
    assert len(first) == 5
    failed = {name: line["exit_code"] for name, line in first.items() if line["error"]}
    assert failed == {str(bad): 6, str(tmp_path / "gone.avi"): 3}
    assert first[str(bad)]["attempts"] == 2
    assert first[str(tmp_path / "gone.avi")]["attempts"] == 1
    assert done.stderr.count(str(tmp_path / "gone.avi")) == 2  # the id and the reason, in one line
    write_clip(bad, slides.Fact(slides.KINDS[5], 5))
    write_clip(tmp_path / "gone.avi", slides.Fact(slides.KINDS[6], 6))
    done = run(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "3 of 5 are answered already" in done.stderr
    again = {line["id"]: line for line in lines_of(out)}
    assert len(lines_of(out)) == len(again) == 5
    assert all(again[name] == line for name, line in first.items() if not line["error"])
    assert not any(line["error"] for line in again.values())


def test_a_run_that_was_killed_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 8)
    out = tmp_path / "answers.jsonl"
    words = ("batch", str(tmp_path / "clips"), "--ask", QUESTION, "-o", str(out))
    running = start(*words)
    while not (out.exists() and len(out.read_text().splitlines()) >= 2):
        assert running.process.is_alive()
        time.sleep(0.02)
    running.send(signal.SIGKILL)
    running.end()
    whole = [line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]
    out.write_text("".join(whole) + '{"schema": "edgemllm/1", "comm')  # as if it had been killed while it wrote
    done = run(*words, "--resume")
    assert done.returncode == 0, done.stderr
    written = out.read_text().splitlines(keepends=True)
    assert written[: len(whole)] == whole
    assert len({line["id"] for line in lines_of(out)}) == len(written) == 8


def test_ctrl_c_ends_with_what_is_done_and_resume_continues(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 8)
    out = tmp_path / "answers.jsonl"
    words = ("batch", str(tmp_path / "clips"), "--ask", QUESTION, "-o", str(out))
    running = start(*words)
    while not (out.exists() and out.read_text()):
        assert running.process.is_alive()
        time.sleep(0.02)
    running.send(signal.SIGINT)
    done = running.end()
    assert done.returncode == 130, done.stderr
    assert "--resume continues" in done.stderr
    before = lines_of(out)
    assert run(*words, "--resume").returncode == 0
    assert lines_of(out)[: len(before)] == before
    assert len(lines_of(out)) == 8


WORKS = [Work(name, ("Why?",), video=f"/none/{name}.mp4") for name in "ab"]
IDENTITY = {"weights": "1", "policy": "edge", "kv_budget": "512", "clip": {"fps": 1.0}, "versions": {"torch": "2"}}


def answered(path: Path) -> Path:
    """Write a file with an answer of the first work."""
    with AnswersFile(path) as file:
        file.begin(IDENTITY, WORKS)
        file.write({"id": "a", "error": None}, WORKS[0])
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "2"}, "another model"),
        ({"policy": "h2o"}, "policy edge, this run has h2o"),
        ({"kv_budget": "256"}, "kv budget 512, this run has 256"),
        ({"clip": {"fps": 2.0}}, "fps 1.0, this run has fps 2.0"),
        ({"versions": {"torch": "3"}}, "torch 2, this run has torch 3"),
    ],
)
def test_a_file_of_another_job_is_refused_with_what_differs(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = answered(tmp_path / "answers.jsonl")
    before = path.read_bytes()
    with AnswersFile(path, resume=True) as file, pytest.raises(UsageError, match=said):
        file.begin({**IDENTITY, **change}, WORKS)
    assert path.read_bytes() == before


def test_other_questions_or_another_video_under_the_same_id_are_refused(tmp_path: Path) -> None:
    path = answered(tmp_path / "answers.jsonl")
    more = Work("c", ("Who?",), "/none/c.mp4")
    with AnswersFile(path, resume=True) as file:
        for work in (Work("a", ("Who?",), WORKS[0].video), Work("a", ("Why?",), "/none/b.mp4")):
            with pytest.raises(UsageError, match="other questions, or of another video"):
                file.begin(IDENTITY, [work])
        assert file.begin(IDENTITY, [*WORKS, more]) == [WORKS[1], more]


def test_everything_that_changes_answers_is_in_the_identity() -> None:
    def identity(job: Job) -> dict[str, Any]:
        return job.identity(job.planned()[1])

    known = identity(Job(Request(kv_budget="512")))
    for other in (
        Job(Request(model="random:qwen2.5-vl-3b", kv_budget="512", device="cpu")), Job(Request(kv_budget="256")),
        Job(Request(kv_budget="512", policy="edge")), Job(Request(kv_budget="512", settings=["recent=0.5"])),
        Job(Request(kv_budget="512", dtype="bfloat16")), Job(Request(kv_budget="512", quant="int8")),
        Job(Request(kv_budget="512", chunk=64)), Job(Request(kv_budget="512", system="Be brief.")),
        Job(Request(kv_budget="512", focus=["red"])), Job(Request(kv_budget="512"), foresee=False),
        Job(Request(kv_budget="512"), {"fps": 2.0}), Job(Request(kv_budget="512"), sampling={"seed": 1}),
    ):  # fmt: skip
        assert identity(other) != known, other


def test_a_model_that_was_trained_further_has_another_fingerprint(tmp_path: Path) -> None:
    import shutil

    from edgemllm.models.loading import DEMO, locate

    copy = tmp_path / "model"
    shutil.copytree(DEMO, copy, ignore=shutil.ignore_patterns("*.mp4"))
    assert fingerprint(locate(str(copy))) == fingerprint(locate("demo"))
    weights = next(copy.glob("*.safetensors"))
    data = np.fromfile(weights, np.uint8)
    data[len(data) // 2 :: 7] ^= 1
    data.tofile(weights)
    assert fingerprint(locate(str(copy))) != fingerprint(locate("demo"))


def test_an_output_that_cannot_be_written_is_one_line_before_anything_is_computed(clips: Path, tmp_path: Path) -> None:
    for place, code in (
        (tmp_path / "no" / "answers.jsonl", 3), (tmp_path, 2), (Path("/proc/answers.jsonl"), 1), (Path("/dev/null"), 2),
    ):  # fmt: skip
        done = run("batch", str(clips), "--ask", QUESTION, "-o", str(place))
        assert done.returncode == code, (place, done.stderr)
        assert (done.stderr.count("error:"), done.stdout) == (1, ""), done.stderr
    path = answered(tmp_path / "answers.jsonl")
    with pytest.raises(UsageError, match="exists already"):
        AnswersFile(path)
    with AnswersFile(path, resume=True), pytest.raises(UsageError, match="another run is writing"):
        AnswersFile(path, resume=True)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "mine"}\n')
    with AnswersFile(other, resume=True) as file, pytest.raises(UsageError, match="line 1, was not written by edgemllm batch"):
        file.begin(IDENTITY, WORKS)


def test_a_disk_that_fills_up_leaves_the_lines_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path) as file:
        file.begin(IDENTITY, WORKS)
        file.write({"id": "a", "error": None}, WORKS[0])
        full = os.open("/dev/full", os.O_WRONLY)
        assert file._file is not None
        os.dup2(full, file._file.fileno())
        os.close(full)
        with pytest.raises(EdgeError, match="no space left"):
            file.write({"id": "b", "error": None}, WORKS[1])
    assert [line["id"] for line in lines_of(path)] == ["a"]


def test_folders_patterns_and_lists_are_found_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.MKV", "note.doc", ".hidden.mp4", "deep/c.webm"):
        (videos / name).touch()
    assert [Path(work.id).name for work in find([str(videos)], ["?"])] == ["a.MKV", "b.mp4", "c.webm"]
    assert [Path(work.id).name for work in find([f"{videos}/*.mp4"], ["?"])] == ["b.mp4"]
    [address] = find(["rtsp://camera/live"], ["?"])
    assert address.video == "rtsp://camera/live"
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.jpg").touch()
    assert find([str(tmp_path / "frames")], ["?"])[0].video == str(tmp_path / "frames")
    (tmp_path / "empty").mkdir()
    for words, kind, said in (
        ([f"{tmp_path}/*.gif"], MissingError, "no file matches"), ([str(tmp_path / "empty")], MissingError, "has no videos"),
        (["x.jsonl"], MissingError, "no list"), ([str(videos), str(videos / "b.mp4")], UsageError, "two videos have the id"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            find(words, ["?"])
    with pytest.raises(UsageError, match="nothing is asked"):
        find([str(videos)], [])
    for row, said in (
        ("{", "line 1"), ("[]", "object expected"), ('{"id": 1}', "either a video or a text"),
        ('{"video": "a", "text": "b"}', "either a video or a text"),
        ('{"video": "a", "questions": [1]}', "not a list of texts"),
    ):  # fmt: skip
        (tmp_path / "list.jsonl").write_text(row)
        with pytest.raises(MissingError, match=said):
            find([str(tmp_path / "list.jsonl")], ["?"])


def test_parquet_in_and_out(clips: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra ray")
    import pyarrow

    rows = [{"id": f"clip {n}", "video": str(clips / f"0{n}.avi"), "questions": [QUESTION]} for n in (0, 1)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    out = tmp_path / "answers.parquet"
    done = run("batch", str(tmp_path / "list.parquet"), "-o", str(out))
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(out).to_pylist()
    assert table == [{**line, "kv": table[n]["kv"]} for n, line in enumerate(lines_of(tmp_path / "answers.parquet.jsonl"))]
    assert [row["id"] for row in table] == ["clip 0", "clip 1"]
    assert table[0]["answers"][0]["question"] == QUESTION
    assert run("batch", str(tmp_path / "list.parquet"), "-o", str(out)).returncode == 2
    assert "2 of 2 are answered already" in run("batch", str(tmp_path / "list.parquet"), "-o", str(out), "--resume").stderr


def test_a_share_is_of_each_video_and_full_never_evicts(clips: Path) -> None:
    words = ("batch", str(clips / "00.avi"), "--ask", QUESTION, "--max-tokens", "4", "-q")
    chat = ("chat", "--video", str(clips / "00.avi"), QUESTION, "--max-tokens", "4", "-q", "--json")
    for options in (("--kv-budget", "90%", "--fps", "10", "--kv-bits", "8"), ("--policy", "full")):
        line, expected = json.loads(run(*words, *options).stdout), json.loads(run(*chat, *options).stdout)
        assert line["error"] is None
        assert line["kv"] == expected["kv"]
        assert line["answers"][0]["answer"] == expected["turns"][0]["answer"]
    line = json.loads(run(*words, "--policy", "full", "--kv-budget", "8").stdout)
    assert line["exit_code"] in (4, 5)
    assert "full" in line["error"]


def test_answer_adds_columns_of_the_same_types_whatever_fails(clips: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra ray")
    step = Answer("demo", kv_budget=512, questions=[QUESTION], max_tokens=12)
    right, wrong = (step(pyarrow.table({"video": [str(clips / name)], "label": [1]})) for name in ("00.avi", "none.avi"))
    assert right.schema == wrong.schema
    assert right.column_names == ["video", "label", "answers", "kv", "seconds", "error"]
    [row], [failed] = right.to_pylist(), wrong.to_pylist()
    assert row["error"] is None
    assert "no video" in failed["error"]
    assert json.loads(row["kv"])["budget_tokens"] == 512
    session = edgemllm.open("demo", kv_budget=512, focus=[QUESTION])
    session.watch(edgemllm.Video.open(clips / "00.avi"))
    assert row["answers"] == [{"question": QUESTION, "answer": "".join(session.ask(QUESTION)).strip()}]
    with pytest.raises(UsageError, match="a video or a text"):
        step(pyarrow.table({"id": ["a"]}))
    with pytest.raises(UsageError, match="an Arrow table expected"):
        step({"video": ["a"]})


def test_workers_are_as_many_as_fit() -> None:
    plan = Job(Request(kv_budget="512")).planned()[1].plan
    one = replace(plan, total_bytes=6 << 30, free_bytes=20 << 30)
    assert seats(one, False, {"CPU": 8.0}, 1, None) == Seats(3, 2.0, 0.0)
    assert seats(one, False, {"CPU": 8.0}, 4, None) == Seats(8, 1.0, 0.0)
    assert seats(one, True, {"CPU": 16.0, "GPU": 2.0}, 1, None) == Seats(6, 2.0, 1 / 3)
    assert seats(one, True, {"CPU": 1.0, "GPU": 1.0}, 1, 2) == Seats(2, 0.5, 1 / 3)
    with pytest.raises(DoesNotFitError, match="--workers 4: each takes 6"):
        seats(one, False, {"CPU": 8.0}, 1, 4)


def test_without_ray_it_is_said_what_to_install_and_an_address_that_is_none_is_one_line(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("batch", str(clips), "--ask", "?", "--workers", "2").returncode == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(UsageError, match="--ray needs ray, which is not installed") as raised:
        check_extra()
    assert raised.value.hint == "pip install 'edgemllm[ray]'"


def test_the_word_after_ray_is_an_address_or_a_video() -> None:
    assert _addressed(["--ray", "clips"]) == ["--ray=here", "clips"]
    assert _addressed(["clips", "--ray"]) == ["clips", "--ray=here"]
    assert _addressed(["--ray", "head:6379", "x.mp4"]) == ["--ray=head:6379", "x.mp4"]
    assert _addressed(["--ray", "ray://head:10001"]) == ["--ray=ray://head:10001"]
    assert _addressed(["--ray", "--workers", "2", "a"]) == ["--ray=here", "--workers", "2", "a"]
