"""`edgemllm recall`: what is hidden, how it is asked for, how it is counted, and what a user sees."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from tiny import llama, tokenizer
from typer.testing import CliRunner

from edgemllm.cli.main import app
from edgemllm.commands.recall.calibration import FIRST_SEED, STREAMS, calibrate
from edgemllm.commands.recall.forms import FORMS, begins_with, statements
from edgemllm.commands.recall.haystacks import Haystacks
from edgemllm.commands.recall.lecture import HOLD, slide_haystack
from edgemllm.commands.recall.needles import RECENT, Haystack, hide, places
from edgemllm.commands.recall.prose import Book, MadeUp
from edgemllm.commands.recall.run import SHORT, Answers, Stream, at_the_end, branch, in_rounds
from edgemllm.commands.recall.score import Score, Tally, paired
from edgemllm.errors import UsageError
from edgemllm.launch import Launch, prepare
from edgemllm.media import slides
from edgemllm.planning.request import Request

BUDGET = 64


def command(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["recall", "--quiet", *map(str, arguments)], env={"EDGEMLLM_POLICY": None})
    assert done.exit_code == code, done.output
    return done


def launch(policy: str, budget: str = str(BUDGET)) -> Launch:
    return prepare(Request("demo", "cpu", policy, (), budget, "none", "float32", "cpu", 16), lambda _: 400)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A short stream of the slide world for the demo model: 40 frames, four facts."""
    return Stream(launch("full", "600").open().family, slide_haystack(7, 40, 4, diverse=True))


@pytest.mark.parametrize("length", [24, 40, 400])
@pytest.mark.parametrize("hold", [1, HOLD])
def test_needles_never_lie_on_one_another_and_the_last_is_recent(length: int, hold: int) -> None:
    for count in range(2, 60):
        try:
            first = places(length, count, hold)
        except UsageError:
            assert (length - RECENT) // hold - 1 < count, "refused though there was room"
            continue
        assert all(b - a >= hold for a, b in itertools.pairwise(first))
        assert first[0] == 0
        assert length - RECENT <= first[-1] <= length - hold


@pytest.mark.parametrize("diverse", [True, False])
def test_a_haystack_shows_what_it_asks_for(diverse: bool) -> None:
    found = slide_haystack(3, 60, 6, diverse)
    assert len(found.items) == 60
    for needle in found.needles:
        images = [found.items[second].pixels for second in range(needle.first, needle.last + 1)]
        assert all((image == images[0]).all() for image in images)
        assert not (found.items[needle.last + 1].pixels == images[0]).all()
    assert len({needle.question for needle in found.needles} | set(found.unseen)) == 6 + len(found.unseen)
    again, other = slide_haystack(3, 60, 6, diverse), slide_haystack(4, 60, 6, diverse)
    assert again.needles == found.needles != other.needles


@pytest.mark.parametrize("kind", ["diverse", "static"])
def test_codes_lie_between_sentences_of_prose(kind: str) -> None:
    told = statements(["text"], 6, np.random.default_rng(3))
    found = hide(told, MadeUp().sentences(3, kind), 600, lambda words: len(words.split()), 3)
    assert [found.items[needle.first] for needle in found.needles] == [f"{n.question} {n.answer}." for n in found.needles]
    assert len("".join(found.items).split()) in range(600, 610)
    fillers = {item for number, item in enumerate(found.items) if number not in {n.first for n in found.needles}}
    assert (len(fillers) > 8) == (kind == "diverse")


def test_the_last_fact_of_a_text_is_recent_however_long_sentences_are() -> None:
    told = statements(["date"], 4, np.random.default_rng(3))
    for words, after in ((60, 1), (9, 6), (500, 0)):
        found = hide(told, itertools.repeat(" word" * words), 4000, lambda text: len(text.split()), 3)
        assert len(found.items) - 1 - found.needles[-1].last == after
        assert found.recent == after + 2


@pytest.mark.parametrize("names", [[name] for name in FORMS] + [list(FORMS), ["text"]])
def test_ten_facts_of_a_stream_are_about_different_things(names: list[str]) -> None:
    told = statements(names, 10, np.random.default_rng(1))
    assert len({each.question for each in told}) == 10
    assert {each.form for each in told} == set(names)
    for each in told:
        rest = [other for other in told if other is not each]
        assert each.answer in each.words
        assert not any(each.question in other.words for other in rest)
        if each.beginning:
            assert f" {each.beginning} {each.answer}" in each.words or each.form == "city"
            assert not any(begins_with(f" {other.answer}.", each.answer) for other in rest)
    assert told != statements(names, 10, np.random.default_rng(2))


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        (" the Clock  Tower, which is old.", "the clock tower", True),
        (" clock tower.", "the clock tower", True),
        (" March 14th. Then", "March 14", True),
        (" 71,432.", "71432", True),
        (" 714321", "71432", False),
        (" March 1", "March 14", False),
        (" not the clock tower", "the clock tower", False),
        ("", "Oslo", False),
    ],
)
def test_an_answer_is_right_by_its_first_words(said: str, wanted: str, right: bool) -> None:
    assert begins_with(said, wanted) == right


def test_a_book_is_cut_after_sentences_and_begins_elsewhere_for_every_seed(tmp_path: Path) -> None:
    text = "Mr. Dale came. He sat; \u201cwell,\u201d he said.\nShe stood up!  (Why not?) A. B. Dean left\n\nThe end"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    book = Book(str(tmp_path / "book.txt"))
    assert "".join(book.all) == text
    assert [each.strip()[:5] for each in book.all] == ["Mr. D", "He sa", "She s", "A. B.", "The e"]
    starts = {next(book.sentences(seed, "haystack")) for seed in range(40)}
    assert starts == set(book.all)
    assert sorted(book.sentences(5, "haystack")) == sorted(book.all)
    (tmp_path / "log.txt").write_text("x" * 2500 + "\n" + "word " * 500)
    assert max(map(len, Book(str(tmp_path / "log.txt")).all)) <= 1010


def test_the_oracle_holds_the_facts_and_the_window_only_the_last(stream: Stream) -> None:
    oracle, window = (at_the_end(launch(name).open(), stream) for name in ("oracle", "window"))
    assert oracle.held == 1.0
    assert 0 < window.held < 0.5
    for answers in (oracle, window):
        assert answers.peak <= BUDGET
        assert [distance is None for distance in answers.distances] == [False] * 4 + [True] * 2
        assert answers.recent == [False] * 3 + [True] + [False] * 2


def test_a_focus_is_told_to_the_policies_that_take_one() -> None:
    arguments = "--tokens 200 --streams 1 --facts 3 --between static --kv-budget 60% --json --focus --policy".split()
    done = command(*arguments, "edge,window")
    edge, window = json.loads(done.stdout)["runs"]
    assert (edge["known_questions"], window["known_questions"]) == (5, 0)
    for each in (edge, window):
        assert each["kv"]["bytes"] <= each["kv"]["budget_bytes"]
    refused = command(*arguments, "window", code=2)
    assert "--focus: window takes none" in refused.stderr


def test_distances_are_tokens_since_the_fact(stream: Stream) -> None:
    session = launch("full", "600").open()
    each = stream.family.sizes(stream.family.model.config).frame_tokens
    answers = at_the_end(session, stream)
    needles = stream.haystack.needles
    assert answers.distances[:4] == [each * (39 - needle.last) for needle in needles]
    assert answers.held == 1.0


def test_a_question_at_the_end_leaves_no_trace_and_one_on_the_way_stays(stream: Stream) -> None:
    session = launch("h2o").open()
    stream.begin(session, record=True)
    stream.show(session, 0, 40)
    seen, keys = session.cache.seen, [layer.keys.clone() for layer in session.cache.managed]
    said = "".join(branch(session).ask("What number was with the red circle?", SHORT))
    again = "".join(branch(session).ask("What number was with the red circle?", SHORT))
    assert said == again
    assert session.cache.seen == seen
    assert all(torch.equal(a, layer.keys) for a, layer in zip(keys, session.cache.managed, strict=True))
    asked = launch("h2o").open()
    answers = in_rounds(asked, stream)
    assert asked.cache.seen > seen + 10 * len(answers.right)


def test_what_is_said_about_a_video_does_not_push_it_out() -> None:
    asked = "--tokens 1200 --streams 1 --between static --chunk 32 --kv-budget 10% --protocol rounds --policy edge --json"
    answers = json.loads(command(*asked.split()).stdout)["runs"][0]["old"]
    assert answers["questions"] == 12
    assert answers["share"] >= 0.8


def test_every_policy_gets_the_same_frames(stream: Stream) -> None:
    answers = [at_the_end(launch("full", "600").open(), stream) for _ in range(2)]
    assert answers[0] == answers[1]


def test_shares_errors_and_pairs() -> None:
    tally = Tally()
    for marks in ([True, True], [False, False], [True, False]):
        tally.add(marks)
    assert tally.share == 0.5
    assert tally.error == pytest.approx(math.sqrt((1 + 1 + 0) * 3 / 2) / 6)
    other = Tally()
    for marks in ([False, False], [False, False], [True, False]):
        other.add(marks)
    assert paired(tally, other) == {"difference": pytest.approx(1 / 3), "error": pytest.approx(1 / 3)}
    assert paired(tally, Tally()) == {"difference": None, "error": None}


def test_what_was_never_told_counts_apart() -> None:
    score = Score()
    score.add(
        Answers(
            [90, 8, None, None], [True, False, True, False], [False, True, True, False], [False, True, False, False], 0.5, 9
        ),
        [90, 8],
    )
    found = score.as_json()
    assert (found["questions"], found["correct"]) == (2, 1)
    assert (found["old"]["share"], found["recent"]["share"]) == (1.0, 0.0)
    assert found["refused_unseen"]["share"] == 0.5
    assert found["refused_told"]["share"] == 0.5
    assert [(each["distance_tokens"], each["share"]) for each in found["by_distance"]] == [(8, 0.0), (90, 1.0)]


def test_one_object_with_a_run_for_every_policy_budget_footage_and_protocol() -> None:
    done = command(
        "--tokens", "200", "--streams", "1", "--facts", "3", "--policy", "oracle,window", "--kv-budget", "20%,40%",
        "--protocol", "both", "--against", "window", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["command"], found["schema"], found["seed"], found["streams"]) == ("recall", "edgemllm/1", 1000, 1)
    runs = found["runs"]
    assert len({(run["policy"], run["kv_budget"], run["between"], run["protocol"]) for run in runs}) == len(runs) == 16
    for run in runs:
        assert run["peak_tokens"] <= run["kv_budget_tokens"]
        assert run["kv"]["bytes"] <= run["kv"]["budget_bytes"]
        assert sum(each["questions"] for each in run["by_distance"]) == run["questions"] > 0
        if run["policy"] == "window":
            assert run["against"]["difference"] == 0.0


def test_full_is_the_reference_without_a_budget(tmp_path: Path, monkeypatch: Any) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra `plot` is not installed").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, path, **more: drawn.append(self))
    arguments = "--tokens 200 --streams 2 --facts 3 --between static --kv-budget 20%,40% --policy".split()
    runs = json.loads(command(*arguments, "full,window", "--json", "--plot", tmp_path / "x.png").stdout)["runs"]
    assert [(run["policy"], run["reference"], run["kv_budget"]) for run in runs] == [
        ("full", True, None), ("window", False, "20%"), ("window", False, "40%"),
    ]  # fmt: skip
    assert runs[0]["kv_budget_tokens"] is None
    assert runs[0]["kv"]["evicted_tokens"] == 0
    assert runs[0]["held"] == pytest.approx(1)
    assert all(run["against"]["difference"] <= 0 for run in runs[1:]), "what the policies lost"
    alone = json.loads(command(*arguments, "window", "--json").stdout)["runs"]
    assert [run["kv_budget_tokens"] for run in alone] == [run["kv_budget_tokens"] for run in runs[1:]]
    for axes in drawn[0].axes:
        assert [text for text in axes.get_legend_handles_labels()[1] if "reference" in text] == ["full (reference)"]
    table = command(*arguments, "full,window").stdout.splitlines()
    assert table[2].startswith("| full (reference) | all | ∞ ")


def test_events_say_what_the_one_object_says() -> None:
    arguments = "--tokens 200 --streams 2 --facts 3 --policy window --between static".split()
    events = [json.loads(line) for line in command(*arguments, "--jsonl").stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "stream", "stream", "run", "end"]
    assert 0 <= events[1]["t"] <= events[2]["t"] < 120
    whole = json.loads(command(*arguments, "--json").stdout)
    assert {**events[3], **whole["runs"][0]} == events[3]
    assert whole["facts"] == events[0]["facts"] == 3


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    llama().model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_codes_for_a_model_that_cannot_chat(tiny_model: Path) -> None:
    bare = tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tiny_model)
    (tiny_model / "chat_template.jinja").unlink(missing_ok=True)
    arguments = f"--model {tiny_model} --tokens 600 --facts 3 --streams 1 --kv-budget 64 --policy oracle,window --json".split()
    found = json.loads(command(*arguments).stdout)
    assert (found["needles"], found["forms"], found["full_share"]) == ("text", [], None)
    oracle, window = (next(run for run in found["runs"] if run["policy"] == name) for name in ("oracle", "window"))
    assert oracle["held"] > window["held"]
    assert [run["questions"] for run in found["runs"]] == [3] * len(found["runs"])
    dates = json.loads(command(*arguments, "--needles", "date", "--between", "static", "--tokens", "900").stdout)
    assert (dates["needles"], dates["forms"]) == ("date", ["date"])
    refused = command("--model", tiny_model, "--tokens", "600", "--needles", "slides", "--policy", "window", code=2)
    assert "takes no video" in refused.stderr


def test_the_forms_are_chosen_by_what_the_full_cache_answers_and_it_says_so(tiny_model: Path) -> None:
    (tiny_model / "book.txt").write_text("".join(f"Line {number} tells nothing new. " for number in range(900)))
    arguments = ["--model", tiny_model, "--tokens", "1500", "--facts", "2", "--streams", "1", "--kv-budget", "200"]
    more = ["--policy", "full,window", "--haystack", tiny_model / "book.txt", "--protocol", "both", "--json"]
    done = CliRunner().invoke(app, ["recall", *map(str, [*arguments, *more])], env={"EDGEMLLM_POLICY": None})
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (len(found["forms"]), found["full_share"]) == (1, 0.0), "a random model answers nothing"
    assert found["needles"] == found["forms"][0]
    assert "no form of needles reaches 80%" in done.stderr
    assert {(run["between"], run["protocol"]) for run in found["runs"]} == {("haystack", "end"), ("haystack", "rounds")}
    full = found["runs"][0]
    assert (full["questions"], full["held"]) == (2, 1.0)
    assert 1400 < full["kv"]["seen_tokens"] < 1700
    short = command(*arguments, "--haystack", tiny_model / "book.txt", "--tokens", "90k", "--needles", "date", code=2)
    assert "the prose ends" in short.stderr


@pytest.mark.parametrize("protocol", [at_the_end, in_rounds])
@pytest.mark.parametrize("needles", ["text", "date", "slides"])
def test_a_stop_ends_a_stream_at_the_next_chunk(needles: str, protocol: Any) -> None:
    session = launch("window", "64").open()
    stream = Haystacks(session.family, MadeUp(), 600).stream([needles], "diverse", 1, 3)
    read = session.passes
    session.passes = lambda chunk: (session.stop() or part for part in read(chunk))  # type: ignore[method-assign]
    assert protocol(session, stream).right == []
    assert session.cache.seen < 100


def test_forms_that_the_full_cache_does_not_know_are_dropped() -> None:
    tried: list[tuple[tuple[str, ...], int]] = []

    def answers(known: dict[str, bool]) -> Any:
        def ask(forms: tuple[str, ...], seed: int) -> list[tuple[str, bool]]:
            tried.append((forms, seed))
            return [(form, known.get(form, False)) for form in forms]

        return ask

    found = calibrate(answers({"date": True, "name": True}))
    assert (found.forms, found.share) == (("date", "name"), 1.0)
    assert [forms for forms, _ in tried] == [tuple(FORMS)] * STREAMS + [("date", "name")] * STREAMS
    assert min(seed for _, seed in tried) == FIRST_SEED
    assert calibrate(answers(dict.fromkeys(FORMS, True))).forms == tuple(FORMS)
    assert calibrate(answers({})).share == 0
    assert calibrate(lambda forms, seed: []).asked == 0, "a signal came"


def test_needles_are_asked_about_in_the_chat_after_the_whole_stream(monkeypatch: Any) -> None:
    tiny = launch("full", "600").open().family
    read: list[str] = []
    whole = tiny.tokenizer
    stream = Haystacks(tiny, MadeUp(), 700).stream(["place"], "diverse", 1, 3)
    feed = tiny.text
    monkeypatch.setattr(tiny, "text", lambda ids, offset: read.append(whole.decode(list(ids))) or feed(ids, offset))
    session = launch("full", "2000").open(family=tiny)
    answers = at_the_end(session, stream)
    needle = stream.haystack.needles[0]
    before, after = session.format.turn(["text"], True)[1:]
    assert "".join(read).startswith(session.format.turn(["text"], True)[0] + "".join(stream.haystack.items))
    assert any(each == before + needle.question + after + needle.beginning for each in read)
    assert len(answers.right) == 3
    assert answers.held == 1.0
    rounds = launch("full", "2000").open(family=tiny)
    assert len(in_rounds(rounds, stream).right) >= 3
    assert "".join(read).count(after + needle.beginning) > 1


MISTAKES: dict[str, tuple[int, str, list[str]]] = {
    "more facts than kinds": (2, "no more than 46", ["--facts", "60", "--tokens", "4k"]),
    "more facts than room": (2, "do not fit", ["--facts", "20", "--tokens", "100", "--kv-budget", "64"]),
    "more codes than subjects": (2, "no more than 72", ["--facts", "99", "--needles", "text", "--tokens", "9k"]),
    "an empty budget": (2, "empty value", ["--kv-budget", "5%,,10%"]),
    "an empty policy": (2, "empty value", ["--policy", "window,"]),
    "unknown footage": (2, "--between dull", ["--between", "dull"]),
    "unknown protocol": (2, "--protocol never", ["--protocol", "never"]),
    "unknown needles": (2, "--needles pins", ["--needles", "pins"]),
    "codes with forms": (2, "--needles text,date", ["--needles", "text,date"]),
    "more needles than subjects": (2, "no more than 12", ["--facts", "13", "--needles", "date", "--tokens", "9k"]),
    "no haystack": (3, "no text gone.txt", ["--haystack", "gone.txt"]),
    "slides in prose": (2, "--haystack is prose", ["--haystack", "gone.txt", "--needles", "slides"]),
    "footage in a haystack": (2, "the haystack is what lies between", ["--haystack", "x.txt", "--between", "static"]),
    "a stranger": (2, "--against h2o", ["--policy", "window", "--against", "h2o"]),
    "unknown policy": (2, "did you mean 'window'", ["--policy", "windw"]),
    "budget": (4, "at least", ["--kv-budget", "3", "--policy", "inf-mllm"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line_and_its_exit_code(case: str) -> None:
    code, words, arguments = MISTAKES[case]
    done = command("--streams", "1", *arguments, code=code)
    assert words in done.stderr
    assert [line[:7] for line in done.stderr.splitlines() if not line.startswith("  try: ")] == ["error: "]
    assert done.stdout == ""


def test_the_plot_has_a_panel_for_each_budget_and_kind(tmp_path: Path, monkeypatch: Any) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra `plot` is not installed").Figure
    drawn: list[Any] = []
    save = figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *rest, **more: drawn.append(self) or save(self, *rest, **more))
    path = tmp_path / "recall.png"
    arguments = "--tokens 200 --streams 1 --facts 3 --policy oracle,window --kv-budget 20%,40%".split()
    table = command(*arguments, "--plot", path).stdout.splitlines()
    assert len(table) == 2 + 2 * 2 * 2
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(drawn[0].axes) == 4
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["oracle", "window"]


def test_a_haystack_is_reproducible_between_processes() -> None:
    """The digits of a seed are part of every report."""
    found: Haystack = slide_haystack(1000, 40, 4, diverse=False)
    assert [needle.question.split()[-1] for needle in found.needles][-1].rstrip("?") in slides.SHAPES
    assert [needle.first for needle in found.needles] == places(40, 4, HOLD)
