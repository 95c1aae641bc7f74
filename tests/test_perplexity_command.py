"""`edgemllm perplexity` as a user meets it: interruptions, checkpoints, mistakes, the screen and the picture."""

from __future__ import annotations

import json
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command import start
from tiny import llama, tokenizer
from typer.testing import CliRunner

from edgemllm.cli.main import app
from edgemllm.commands.perplexity.run import Run
from edgemllm.models import tokens

LICENSE = Path(__file__).parents[1] / "LICENSE"
NAMES = "inf-mllm,streaming-llm"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only Llama with random weights, in a folder; one token a character."""
    folder = tmp_path_factory.mktemp("llama")
    llama().model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def short(small: Path) -> list[str]:
    """A run of some seconds at most, in chunks of 20."""
    return ["--model", str(small), "--text", str(LICENSE), "--tokens", "1500", "--kv-budget", "96", "--chunk", "20"]


def command(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["perplexity", *map(str, arguments)], input=stdin, env={"EDGEMLLM_POLICY": None})
    assert done.exit_code == code, done.output
    return done


def digits(output: str) -> list[Any]:
    """Everything in a JSON result that must not depend on interruptions."""
    return [
        {name: run[name] for name in ("policy", "tokens", "nll_nats", "bytes", "perplexity", "notes", "compare_full")}
        | {"curve": [(point["tokens"], point["nll_nats"], point["bytes"], point["kv_bytes"]) for point in run["curve"]]}
        for run in json.loads(output)["runs"]
    ]


@pytest.mark.slow
def test_kill_9_at_a_random_moment_changes_no_digit(tmp_path: Path) -> None:
    """The demo model under two policies; killed somewhere between the first checkpoint and the end, then once more."""
    options = ["--text", LICENSE, "--tokens", 900, "--policy", NAMES, "--kv-budget", 128, "--chunk", 30]
    saving = [*options, "--checkpoint", tmp_path / "run.edge", "--checkpoint-every", 100]
    alone = digits(command(*options, "--json").stdout)
    killed = 0
    for _ in range(2):
        running = start("perplexity", *map(str, saving), "--jsonl", "--resume")
        moment = random.randint(1, 6)
        while running.process.is_alive() and running.stdout.count('"event": "checkpoint"') < moment:
            time.sleep(0.01)
        time.sleep(random.random() / 20)
        running.process.kill()
        killed += running.end().returncode == -signal.SIGKILL
    assert killed
    assert digits(command(*saving, "--resume", "--json").stdout) == alone
    assert digits(command(*saving, "--resume", "--json").stdout) == alone, "a finished run is told again"
    assert [path.name for path in tmp_path.iterdir()] == ["run.edge"], "what the killed process was writing is cleaned up"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_order_and_resume_goes_on(
    number: int, code: int, short: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    whole = digits(command(*short, "--json", "--policy", NAMES).stdout)
    saving = [*short, "--json", "--policy", NAMES, "--checkpoint", tmp_path / "run.edge"]
    step, steps = Run.step, 0

    def interrupted(run: Run) -> bool:
        nonlocal steps
        steps += 1
        if steps == 100:  # in the second policy's run
            signal.raise_signal(number)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", interrupted)
        done = command(*saving, code=code)
    first, second = json.loads(done.stdout)["runs"]
    assert (first["stopped"], second["stopped"]) == (None, "interrupted")
    assert 0 < second["tokens"] < 1500
    again = command(*saving, "--resume")
    assert f"continuing from {second['tokens']} tokens" in again.stderr
    assert digits(again.stdout) == whole


def test_full_disk_is_said_and_the_run_goes_on(short: list[str], tmp_path: Path) -> None:
    """A limit on file size makes the operating system refuse to write, as a full disk does."""
    path = tmp_path / "run.edge"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = command(*short, "--jsonl", "--checkpoint", path, "--checkpoint-every", 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    saved = [event for event in events if event["event"] == "checkpoint"]
    assert len(saved) == 3
    assert all("cannot save" in event["problem"] for event in saved)
    assert done.stderr.count("warning: cannot save the session to") == 3
    assert "the run continues" in done.stderr
    assert next(event for event in events if event["event"] == "run")["tokens"] == 1500
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_another_run_and_keeps_automatic_budgets(short: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "run.edge"
    automatic = [option for option in short if option not in ("--kv-budget", "96")]
    saving = [*automatic, "--policy", NAMES, "--json", "--checkpoint", path]
    first = digits(command(*saving).stdout)
    assert "exists already" in command(*saving, code=2).stderr
    assert "chunk 20" in command(*saving, "--resume", "--chunk", 10, code=2).stderr
    assert "kv budget" in command(*saving, "--resume", "--kv-budget", 100, code=2).stderr
    from edgemllm.planning import case

    monkeypatch.setattr(case, "AUTO_TOKENS", 256)  # as if less memory were free than when the run began
    assert digits(command(*saving, "--resume").stdout) == first
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in command(*saving, "--resume", code=3).stderr


def test_resume_refuses_another_text(short: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    saving = [*short, "--checkpoint", tmp_path / "run.edge"]
    step = Run.step
    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", lambda run: run.sums.tokens < 700 and step(run))
        command(*saving)
    (tmp_path / "other.txt").write_text(LICENSE.read_text().replace("License", "Licence"))
    saving[3] = str(tmp_path / "other.txt")
    assert "the text is not the one of the checkpoint" in command(*saving, "--resume", code=2).stderr


def test_a_text_that_ends_or_breaks_loses_nothing_that_was_computed(short: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tokens, "PIECE", 100)
    short[3] = "-"
    done = command(*short, "--json", stdin="a b c d e f " * 50, code=3)
    assert json.loads(done.stdout)["runs"][0]["tokens"] == 599
    assert "the text has 599 tokens to score, --tokens asked for 1500" in done.stderr
    looped = command(*short, "--json", "--loop", stdin="a b c d e f " * 50)
    assert "begins again" in looped.stderr
    run = json.loads(looped.stdout)["runs"][0]
    assert (run["tokens"], run["loops"]) == (1500, 2)
    assert any("repeated text" in note for note in run["notes"])
    (tmp_path / "a.txt").write_text("a b c d e f " * 50)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    broken = [*short[:2], "--text", str(tmp_path), *short[6:], "--json", "--checkpoint", tmp_path / "run.edge"]
    done = command(*broken, code=3)
    assert "b.txt is UTF-16 text, not UTF-8" in done.stderr
    (tmp_path / "b.txt").write_text("a b c d e f ")
    assert json.loads(command(*broken, "--resume").stdout)["runs"][0]["tokens"] == 611


MISTAKES = {
    "no count": (2, "--tokens 'many'", ["--tokens", "many"]),
    "nothing": (2, "--tokens '0'", ["--tokens", "0"]),
    "no text": (3, "no text nowhere.txt", ["--text", "nowhere.txt"]),
    "nearly a data set": (3, "did you mean 'wikitext103'", ["--text", "wikitext10"]),
    "folder without text": (3, "has no text", ["--text", "EMPTY"]),
    "empty text": (3, "there is no text", ["--text", "-"]),
    "more than there is": (3, "cannot have that many tokens", ["--text", str(LICENSE), "--tokens", "4M"]),
    "endless": (2, "would never end", ["--text", str(LICENSE), "--loop"]),
    "standard input twice": (2, "given twice", ["--text", "-", "--text", "-"]),
    "no policy": (2, "empty value", ["--policy", "window,,full"]),
    "unknown policy": (2, "did you mean 'window'", ["--policy", "full,windw"]),
    "policy twice": (2, "twice", ["--policy", "full,full"]),
    "setting of nobody": (2, "not among the policies", ["--policy", "full,window", "--set", "h2o.x=1"]),
    "unknown setting": (2, "did you mean 'sinks'", ["--policy", "streaming-llm", "--set", "sink=1"]),
    "chunk": (2, "--chunk 0", ["--chunk", "0"]),
    "chunk and budget": (4, "chunks of 64", ["--chunk", "64", "--kv-budget", "64"]),
    "budget": (4, "at least", ["--kv-budget", "3"]),
    "full in a budget": (
        4,
        "never evicts",
        ["--policy", "full", "--kv-budget", "64", "--text", str(LICENSE), "--tokens", "99"],
    ),
    "resume what": (2, "--checkpoint FILE --resume", ["--resume"]),
    "checkpoint nowhere": (3, "no folder", ["--checkpoint", "none/run.edge"]),
    "plot format": (2, "no format", ["--plot", "run.bmp"]),
    "plot nowhere": (3, "no folder", ["--plot", "none/run.png"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line_and_its_exit_code(case: str, tmp_path: Path, monkeypatch: Any) -> None:
    code, words, arguments = MISTAKES[case]
    if case.startswith("plot"):
        pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    done = command(*arguments, code=code, stdin="")
    assert words in done.stderr
    assert [line[:7] for line in done.stderr.splitlines() if not line.startswith("  try: ")] == ["error: "]
    assert "Traceback" not in done.output


def test_events_are_told_once_and_end_with_the_exit_code(short: list[str]) -> None:
    events = [json.loads(line) for line in command(*short, "--jsonl", "--quiet").stdout.splitlines()]
    assert [events[0]["event"], events[-2]["event"]] == ["start", "run"]
    assert events[-1] == {"schema": "edgemllm/1", "event": "end", "exit_code": 0}
    told = [event["tokens"] for event in events if event["event"] == "point"]
    assert told == [point["tokens"] for point in events[-2]["curve"]][:-1]
    assert all(event["chunk"] == 20 for event in events if event["event"] == "point")


def test_what_is_shown_while_it_runs_and_at_the_end(short: list[str], monkeypatch: Any) -> None:
    from edgemllm import screen as line

    monkeypatch.setattr(line, "PLAIN_SECONDS", 0.0)
    done = command(*short, "--policy", NAMES, "--progress", "plain", "--compare-full")
    steps = [text for text in done.stderr.splitlines() if text.startswith("inf-mllm  ━")]
    assert len(steps) > 10
    for word in ("/1.5k tokens", " tok/s", "  ETA 00:", "ppl ", "  kv ", "  rss ", "chunk 20"):
        assert word in steps[-1]
    assert any(block in steps[-1] for block in "▁▂▃▄▅▆▇")
    rows = done.stdout.splitlines()
    assert rows[0].split()[:4] == ["policy", "tokens", "perplexity", "last"]
    assert [row.split()[0] for row in rows[1:3]] == NAMES.split(",")
    assert rows[4].startswith("against full")
    assert len(rows) == 7
    assert "\x1b" not in done.stdout + done.stderr


def test_the_plot_has_a_line_for_each_policy_on_a_log_axis(short: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra `plot` is not installed").Figure
    drawn: list[Any] = []
    save = figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *rest, **more: drawn.append(self) or save(self, *rest, **more))
    path = tmp_path / "run.png"
    command(*short, "--policy", "full,window,inf-mllm", "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    above, middle, below = drawn[0].axes
    assert above.get_yscale() == "log"
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["full (stopped)", "window", "inf-mllm"]
    assert [above.get_ylabel(), middle.get_ylabel(), below.get_ylabel()] == ["perplexity", "MiB", "tokens/s"]
    assert any("trained length 512" in text.get_text() for text in above.texts)
