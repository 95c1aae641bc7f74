"""Text in: documents in a conversation, and texts that grow, in constant memory and with every line accounted for."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run, start
from tiny import TEXT_MODELS, VISION_MODELS
from typer.testing import CliRunner

from edgemllm import policies, session_file
from edgemllm.cache.attention import NAME
from edgemllm.cli.main import app
from edgemllm.commands.chat.repl import complete
from edgemllm.errors import MissingError
from edgemllm.media.frame import Frame
from edgemllm.media.growing_text import LONGEST, GrowingText
from edgemllm.media.subtitles import Cue, Subtitles
from edgemllm.models import loading
from edgemllm.models.chat import Sampling
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session

LICENSE = Path(__file__).parents[1] / "LICENSE"
SHORT = ("--kv-budget", "128", "--max-tokens", "4")
ENDED_S = 60
"""It takes a second, but not on a busy machine."""


@pytest.fixture(scope="module")
def demo() -> ModelFamily:
    return loading.load(loading.locate("demo"))


def session(family: ModelFamily, budget: int | None = 96, policy: str = "streaming-llm") -> Session:
    return Session(family, policies.build(policy), budget, 16)


def page(lines: int) -> str:
    return "".join(f"Line {number}: the lamp was lit again.\n" for number in range(1, lines + 1))


# ---- in a session ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fed(demo: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of all text that the demo model is fed, but for those of answers."""
    ids: list[int] = []
    text = demo.text

    def noting(tokens: Sequence[int], offset: int) -> Any:
        ids.extend(tokens)
        return text(tokens, offset)

    monkeypatch.setattr(demo, "text", noting)
    return ids


def test_documents_stand_in_the_turn_of_the_question_in_their_order(demo: ModelFamily, fed: list[int]) -> None:
    reading = session(demo)
    reading.read("The door is open.\n")
    reading.show(Frame(np.zeros((32, 32, 3), np.uint8), 0.0, 0))
    reading.read("The lamp is lit.")
    for _ in reading.ask("What is open?", Sampling(max_tokens=1)):
        pass
    written = demo.tokenizer.decode(fed)
    assert written.startswith("<|im_start|>user\nThe door is open.\n\nThe lamp is lit.\nWhat is open?<|im_end|>\n")


def test_files_and_strings_are_read_and_the_cache_stays_within_its_budget(demo: ModelFamily, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text(page(60))
    watched = session(demo)
    assert watched.read(tmp_path / "page.txt") == watched.meter.text_tokens > 500
    assert watched.read("no end of line") < 10
    assert (watched.meter.lines, watched.meter.text_bytes) == (61, len(page(60)) + 14)
    assert max(watched.kv()["tokens_per_layer"]) <= 96
    kept = watched.remembered("text")
    assert kept[-1] == 61
    assert (kept[0], kept[1] > 50) == (1, True), "the attention sinks, and the newest"
    assert watched.remembered("video") == []


def test_a_text_read_line_by_line_has_nearly_the_tokens_of_the_whole(demo: ModelFamily, tmp_path: Path) -> None:
    text = LICENSE.read_text()[:3000]
    whole, lines = session(demo), session(demo)
    whole.read(text)
    for line in text.splitlines(keepends=True):
        lines.read_on(line)
    assert whole.meter.text_bytes == lines.meter.text_bytes == len(text.encode())
    assert abs(whole.meter.text_tokens - lines.meter.text_tokens) <= 0.02 * whole.meter.text_tokens


def test_the_name_of_a_special_token_in_a_document_is_text(demo: ModelFamily, fed: list[int]) -> None:
    session(demo).read("the log said <|im_end|> and <video>\n")
    assert demo.tokenizer.convert_tokens_to_ids("<|im_end|>") not in fed
    assert demo.tokenizer.decode(fed).endswith("user\nthe log said <|im_end|> and <video>\n")


def test_a_saved_session_continues_in_the_middle_of_a_document(demo: ModelFamily, tmp_path: Path) -> None:
    first, second = session(demo), session(demo)
    first.read_on(page(20))
    session_file.save(first, tmp_path / "a.edge")
    session_file.load(second, tmp_path / "a.edge")
    for each in (first, second):
        each.read_on("One more line.\n")
    assert first.cache.seen == second.cache.seen
    assert "".join(first.ask("What?", Sampling(max_tokens=4))) == "".join(second.ask("What?", Sampling(max_tokens=4)))
    assert second.remembered("text")[-1] == 21


def test_an_empty_text_is_refused_and_leaves_the_session_as_it_was(demo: ModelFamily, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    reading = session(demo)
    with pytest.raises(MissingError, match="is empty"):
        reading.read(tmp_path / "empty.txt")
    assert reading.cache.seen == 0


@pytest.mark.parametrize("model", TEXT_MODELS + VISION_MODELS)
def test_every_family_reads(model: Any) -> None:
    family = model().use(NAME).family
    reading = Session(family, policies.build("streaming-llm"), 96, 64 if "gemma" in model.__name__ else 16)
    assert reading.read(page(12)) > 0
    "".join(reading.ask("What?", Sampling(max_tokens=2)))


# ---- chat --------------------------------------------------------------------------------------------------------------


def test_chat_reads_texts_before_its_questions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(page(30))
    done = run("chat", *SHORT, "--text", str(tmp_path / "a.txt"), "--text", "-", "--json", "Who?", stdin=page(3))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {key: result["text"][key] for key in ("path", "lines")} == {"path": "standard input", "lines": 3}
    assert result["text"]["tokens"] > 3
    assert result["text"]["remembered"][-1][1] == 33, "lines are counted through all texts"
    assert result["video"] is None
    assert max(result["kv"]["tokens_per_layer"]) <= 128
    assert "a.txt: 30 lines, " in done.stderr
    assert "of 33 lines at least partly" in done.stderr


def test_a_conversation_reads_texts_and_shows_which_lines_are_left(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(page(30))
    done = run("chat", *SHORT, stdin=f"/text {tmp_path / 'a.txt'}\n/stats\nWho?\n/help\n/text {tmp_path}\n")
    assert done.returncode == 3
    assert "| line 30" in done.stderr
    assert "/text PATH" in done.stderr
    assert "is a folder" in done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert complete("/te", "/te") == ["/text "]
    assert complete("/text a", f"{tmp_path}/a") == [f"{tmp_path}/a.txt"]


MISTAKES = {
    "not there": (3, "no text nowhere.txt", ["--text", "nowhere.txt"]),
    "folder": (3, "folder is a folder", ["--text", "folder"]),
    "empty": (3, "empty.txt is empty", ["--text", "empty.txt"]),
    "empty pipe": (3, "standard input is empty", ["--text", "-"]),
    "binary": (3, "binary is no text", ["--text", "binary"]),
    "not UTF-8": (3, "latin.txt is not UTF-8 text: byte 6", ["--text", "latin.txt"]),
    "twice": (2, "given twice", ["--text", "-", "--text", "-"]),
    "would not fit": (4, "never evicts", ["--text", "page.txt", "--policy", "full", "--kv-budget", "64"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_read_is_one_line_and_its_exit_code(case: str, tmp_path: Path) -> None:
    code, words, arguments = MISTAKES[case]
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "latin.txt").write_bytes("un café\n".encode("latin-1"))
    (tmp_path / "page.txt").write_text(page(50))
    done = run("chat", *arguments, "Who?", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert [words in line for line in done.stderr.splitlines() if line.startswith("error: ")] == [True]
    assert done.stdout == ""


def test_questions_and_a_text_do_not_both_come_from_standard_input() -> None:
    done = run("chat", "--text", "-", stdin="hi\n")
    assert done.returncode == 2
    assert "where questions would come from" in done.stderr


# ---- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """What stays open as a command's standard input for as long as a test has it open."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (("chat", *SHORT, "--json", "Who?"), signal.SIGINT, 130),
        (("chat", *SHORT, "--json", "Who?"), signal.SIGTERM, 143),
        (("perplexity", "--kv-budget", "128", "--json"), signal.SIGINT, 130),
    ],
)
def test_a_pipe_that_stalls_is_left_at_one_signal(
    arguments: tuple[str, ...], number: signal.Signals, code: int, pipe: Path
) -> None:
    process = start(*arguments, "--text", "-", "--progress", "plain", stdin=pipe)
    with pipe.open("w") as written:
        fcntl.fcntl(written, fcntl.F_SETPIPE_SZ, 4096)
        written.write(page(150)[:4097])
        written.flush()  # returns when somebody has begun to read
        time.sleep(0.5)
        process.send(number)
        done = process.end(ENDED_S)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["command"] == arguments[0]


# ---- stream ------------------------------------------------------------------------------------------------------------


def watch(source: GrowingText, lines: float = math.inf, most: int = 1000) -> str:
    """Everything that comes until nothing is there, in pieces of `most` characters."""
    found = ""
    while piece := source.take(most, lines):
        found += piece
    return found


def test_whole_lines_come_as_a_file_grows_and_across_truncation_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("\ufeffone\ntwo\nthr")
    source = GrowingText(str(path))
    assert watch(source) == "one\ntwo\n"
    with path.open("a") as log:
        log.write("ee\nfour\n")
    assert source.take(1000, lines=1) == "three\n"
    assert watch(source) == "four\n"
    path.write_text("a new beginning\n")
    assert watch(source) + watch(source) == "a new beginning\n"
    with path.open("a") as log:
        log.write("cut o")
    path.rename(tmp_path / "app.log.1")
    assert watch(source) == ""
    path.write_text("rotated\n")
    assert watch(source) + watch(source) == "cut o\nrotated\n", "a line that rotation cut off gets an end"
    assert [notice.event for notice in source.notices] == ["truncated", "rotated"]
    assert "was truncated after line 4; reading continues at its beginning" in source.notices[0].text
    assert source.line == 7
    source.close()


def test_a_place_leads_back_to_where_reading_was(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text(page(20))
    first = GrowingText(str(path))
    before = first.take(300)
    place = json.loads(json.dumps(first.place))
    first.close()
    second = GrowingText(str(path), place=place)
    assert before + watch(second) == page(20)
    assert (second.line, second.byte) == (20, len(page(20)))
    second.close()
    path.unlink()
    path.write_text("another\n")
    third = GrowingText(str(path), place=place)
    assert watch(third) == "another\n"
    assert "reading continues at its beginning" in third.notices[0].text
    third.close()


def test_a_line_without_end_comes_in_parts_cut_between_words(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("lamp " * 20_000)
    source = GrowingText(str(path), timeout=0.2)
    parts = []
    while not source.done:
        parts.append(source.take(100))
    assert "".join(parts) == "lamp " * 20_000
    assert max(map(len, parts)) <= LONGEST
    assert all(part.startswith(" lamp") for part in parts[1:-1] if part)
    assert source.line == 1
    source.close()


ASKING = ("--ask", "Was there an error?", *SHORT, "--policy", "streaming-llm", "--chunk", "64")


def events(out: str, name: str) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, out.splitlines()) if event["event"] == name]


def test_a_piped_text_is_asked_about_by_the_line(tmp_path: Path) -> None:
    done = run(
        "stream", "--text", "-", *ASKING, "--every", "100lines", "--at", "150lines What?", "--at", "end Now?",
        "--at", "9klines Never?", "--jsonl", stdin=page(250),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = events(done.stdout, "answer")
    assert [(event["line"], event["question"]) for event in answers] == [
        (100, "Was there an error?"), (150, "What?"), (200, "Was there an error?"), (250, "Now?"),
    ]  # fmt: skip
    assert answers[0]["byte"] == len(page(100))
    assert all(max(event["kv"]["tokens_per_layer"]) <= 128 for event in answers)
    text = events(done.stdout, "stats")[-1]["text"]
    assert {key: text[key] for key in ("lines", "bytes")} == {"lines": 250, "bytes": len(page(250))}
    assert text["remembered"][-1][1] == 250
    assert "not asked, the text ended before line 9,000: Never?" in done.stderr


def test_lines_that_wait_are_read_in_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of all sizes would make the process grow for hours, and so do their rests, a new one before every question."""
    sizes, take = [], Session._take
    monkeypatch.setattr(Session, "_take", lambda self, tokens: (sizes.append(len(tokens)), take(self, tokens))[1])
    (path := tmp_path / "app.log").write_text(page(300))
    options = (*ASKING, "--every", "200lines", "--timeout", "1s", "--chunk", "32", "--save", str(tmp_path / "app.edge"))
    done = CliRunner().invoke(app, ["stream", "--text", str(path), *options, "--json"])
    assert done.exit_code == 0, done.output
    rests = [list(rest) for whole, rest in itertools.groupby(sizes, lambda size: size == 32) if not whole]
    assert len(rests) <= 2, "one before the question, one at the end"
    assert all(size.bit_count() == 1 for rest in rests for size in rest)
    text = json.loads(done.stdout)["text"]
    assert (text["lines"], text["remembered"][-1][1]) == (300, 300)


def test_text_answers_name_the_line() -> None:
    done = run("stream", "--text", "-", *ASKING, "--every", "1000lines", "-q", stdin="ok\n" * 1000)
    assert done.stdout.startswith("[line 1,000]\tWas there an error?\t")
    assert len(done.stdout.splitlines()) == 1


def test_a_text_stream_continues_where_it_was_saved(tmp_path: Path) -> None:
    path, saved = tmp_path / "app.log", tmp_path / "app.edge"
    common = ("stream", "--text", str(path), *ASKING, "--every", "40lines", "--timeout", "1s", "--jsonl")
    path.write_text(page(90))
    whole = events(run(*common).stdout, "answer")
    path.write_text(page(50))
    first = run(*common, "--save", str(saved))
    assert first.returncode == 0, first.stderr
    with path.open("a") as log:
        log.write(page(90)[len(page(50)) :])
    second = run(*common, "--resume", str(saved))
    assert second.returncode == 0, second.stderr
    answers = events(first.stdout, "answer") + events(second.stdout, "answer")
    assert [event["line"] for event in answers] == [event["line"] for event in whole] == [40, 80]
    assert "is the session of a text" in run("stream", str(loading.DEMO / "lecture.mp4"), "--resume", str(saved)).stderr


def test_what_was_computed_before_a_damaged_byte_is_kept(tmp_path: Path) -> None:
    path, saved = tmp_path / "app.log", tmp_path / "app.edge"
    os.mkfifo(path)
    options = ("--every", "50lines", "--at", "end Now?", "--save", str(saved))
    process = start("stream", "--text", str(path), *ASKING, *options)
    path.write_bytes(page(60).encode() + b"caf\xe9\n")
    done = process.end(10 * ENDED_S)
    assert done.returncode == 3, done.stderr
    answers = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert answers == [["[line 50]", "Was there an error?"], ["[line 61]", "Now?"]]
    assert f"is not UTF-8 text: byte {len(page(60)) + 3}" in done.stderr
    assert saved.is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stream_that_stalls_ends_at_one_signal_with_its_session_saved(
    number: signal.Signals, code: int, tmp_path: Path, pipe: Path
) -> None:
    saving = ("--every", "20lines", "--save", str(tmp_path / "a.edge"))
    process = start("stream", "--text", "-", *ASKING, *saving, stdin=pipe)
    with pipe.open("w") as written:
        written.write(page(20) + "half a li")
        written.flush()
        process.wait_for("[line 20]\t")
        process.send(number)
        done = process.end(ENDED_S)
    assert done.returncode == code, done.stderr
    assert session_file.run_of(tmp_path / "a.edge")["place"]["line"] == 20


STREAM_MISTAKES = {
    "neither": (2, "neither SOURCE nor --text", []),
    "both": (2, "both given", ["page.txt", "--text", "page.txt"]),
    "lines of a video": (2, "only a text has lines", ["clip.mp4", "--ask", "What?", "--every", "5lines"]),
    "no count": (2, "'zero' is not a whole number", ["--text", "page.txt", "--ask", "What?", "--every", "zerolines"]),
    "not there": (3, "no text nowhere.txt", ["--text", "nowhere.txt"]),
    "folder": (3, "folder is a folder", ["--text", "folder"]),
    "binary": (3, "binary is no text", ["--text", "binary"]),
    "empty": (3, "empty.txt is empty", ["--text", "empty.txt", "--timeout", "0.3s"]),
    "empty pipe": (3, "standard input is empty", ["--text", "-"]),
}


@pytest.mark.parametrize("case", STREAM_MISTAKES)
def test_a_text_stream_that_cannot_begin_says_why(case: str, tmp_path: Path) -> None:
    code, words, arguments = STREAM_MISTAKES[case]
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "page.txt").write_text(page(5))
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    done = run("stream", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


# ---- subtitles ---------------------------------------------------------------------------------------------------------

SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:03,000\r\n<i>Good</i> morning\r\n\r\n"
    "2\r\n00:00:04,500 --> 00:00:06,000\r\n{\\an8}It rains.\r\n"
)
VTT = (
    "WEBVTT\n\nNOTE no --> cue\n\n00:01.000 --> 00:03.000 align:start\nGood morning\n\n"
    "00:04.500 --> 00:06.000\n<v Ann>It rains &amp; pours.\n"
)


@pytest.mark.parametrize(("name", "text", "last"), [("a.srt", SRT, "It rains."), ("a.vtt", VTT, "It rains & pours.")])
def test_cues_come_before_the_first_frame_that_follows_them(name: str, text: str, last: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, newline="")
    frames = [Frame(np.zeros((4, 4, 3), np.uint8), float(second), second) for second in range(8)]

    def parts(first: int) -> list[Any]:
        found = Subtitles.open(str(tmp_path / name)).among(frames[first:])
        return [part if isinstance(part, str) else [frame.index for frame in part] for part in found]

    assert parts(0) == [[0], "Good morning", [1, 2, 3, 4], last, [5, 6, 7]]
    assert parts(2) == ["Good morning", [2, 3, 4], last, [5, 6, 7]], "still to be seen at the first frame"
    assert parts(3) == [[3, 4], last, [5, 6, 7]]


@pytest.mark.parametrize("model", VISION_MODELS)
def test_every_family_hears_subtitles_among_the_frames(model: Any) -> None:
    family = model().use(NAME).family
    if family.video_token is None:
        pytest.skip("takes no video")
    watching = Session(family, policies.build("streaming-llm"), 192, 64)
    frames = [Frame(np.full((32, 32, 3), 30 * second, np.uint8), float(second), second) for second in range(6)]
    assert watching.watch(frames, Subtitles([Cue(1.5, 3, "It rains."), Cue(9, 10, "The end.")])) == 6
    "".join(watching.ask("What?", Sampling(max_tokens=2)))


def test_chat_and_stream_find_the_subtitles_beside_the_video(tmp_path: Path) -> None:
    shutil.copy(loading.DEMO / "lecture.mp4", tmp_path / "talk.mp4")
    common = ("--max-tokens", "4", "--end", "6", "--json")
    talk = str(tmp_path / "talk.mp4")
    missing = run("chat", "--video", talk, "--subtitles", "auto", *common, "What?")
    assert missing.returncode == 3
    assert "no subtitles beside" in missing.stderr
    plain = json.loads(run("chat", "--video", talk, *common, "What?").stdout)
    (tmp_path / "talk.srt").write_text(SRT)
    heard = json.loads(run("chat", "--video", talk, "--subtitles", "auto", *common, "What?").stdout)
    assert heard["video"] == plain["video"]
    assert heard["kv"]["seen_tokens"] > plain["kv"]["seen_tokens"]
    streamed = run("stream", talk, "--subtitles", str(tmp_path / "talk.srt"), "--at", "end What?", *common)
    assert json.loads(streamed.stdout)["kv"]["seen_tokens"] == heard["kv"]["seen_tokens"]
