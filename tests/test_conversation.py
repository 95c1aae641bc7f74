"""A conversation: /commands on a terminal and in a pipe, questions of several lines, and a terminal that stays clean."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import run, type_to

from edgemllm.commands.chat.repl import complete
from edgemllm.models.loading import DEMO

CLIP = ("chat", "--video", str(DEMO / "lecture.mp4"), "--end", "12", "--max-tokens", "8")


def test_a_command_in_a_pipe_is_obeyed(tmp_path: Path) -> None:
    saved = tmp_path / "a.edge"
    commands = f"/save {saved}\n/stats\n/clear\n/set max_tokens=2\n/load {saved}\n/history\n/exit\nnot asked"
    asked = f"What is on the screen now?\n{commands}"
    done = run(*CLIP, "--json", stdin=asked)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # and nothing else
    assert [turn["question"] for turn in result["turns"]] == ["What is on the screen now?"]
    assert saved.is_file()
    for words in ("saved to", "evicted", "forgotten: ", "max_tokens = 2 from the next", "tokens seen", "> What is on"):
        assert words in done.stderr


def test_a_video_of_the_conversation_is_sampled_as_the_command_line_says() -> None:
    done = run("chat", "--fps", "2", "--max-frames", "5", "--end", "3", "--json", stdin=f"/video {CLIP[2]}\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"]["frames_seen"] == 5, "spread over the whole video"
    assert "spread evenly by --max-frames 5" in done.stderr


def test_an_unknown_command_in_a_pipe_is_refused_and_no_question() -> None:
    done = run(*CLIP, "-q", stdin="/stast\n")
    assert done.returncode == 2
    assert "unknown command /stast (did you mean '/stats'?)" in done.stderr
    assert done.stdout == ""
    assert run(*CLIP, "-q", stdin=" /etc/hosts is what?\n").returncode == 0


def test_another_policy_begins_afresh_and_never_unasked() -> None:
    asked = "/policy edge\n/set newest=8\n/policy\nWhat is this?\n/policy window\n"
    done = run("chat", "--policy", "inf-mllm", "--kv-budget", "256", "--max-tokens", "4", "--json", stdin=asked)
    assert done.returncode == 2
    assert "edge, 2" in done.stderr  # tokens per layer
    assert "a new session, nothing seen yet" in done.stderr
    assert "the cache holds what edge kept of" in done.stderr
    assert "try: /clear" in done.stderr
    result = json.loads(done.stdout)
    assert result["policy"] == "edge"
    assert result["kv"]["seen_tokens"] > 0
    assert result["kv"]["bytes"] <= result["kv"]["budget_bytes"]
    limits = run("chat", stdin="/set top_p=2\n")
    assert "a number from 0 to 1 expected" in limits.stderr


def test_a_terminal_takes_several_lines_and_keeps_what_is_typed_ahead() -> None:
    typed = '"""What is\non the screen now?"""\n/history\n/nonsense\n/exit\n'
    code, shown = type_to(*CLIP, typed=typed)
    assert code == 0, shown
    assert "> What is\non the screen now?\n" in shown, "asked as one question"
    assert "error: unknown command /nonsense" in shown


@pytest.mark.parametrize("way", ["chat", "stream"])
def test_what_is_typed_while_it_loads_and_watches_is_hidden_and_answered(way: str) -> None:
    last = "/exit\n" if way == "chat" else "\n"
    arguments = CLIP if way == "chat" else ("stream", *CLIP[2:])
    code, shown = type_to(*arguments, typed=f"/history\nWas there a red circle?\n{last}", ahead=False)
    assert code == 0, shown
    if way == "chat":
        assert "/history" not in shown.split("\n> ", 1)[0], "hidden before the prompt"
    else:
        assert "/history" not in shown.replace("unknown command /history", "")
        assert shown.count("Was there a red circle?") == 1, "with its answer, and nowhere else"
        assert "ask> " in shown


@pytest.mark.parametrize(
    ("way", "typed", "number", "code"),
    [("", "\x03", 0, 130), ("", "", signal.SIGTERM, 143), ("--end=13 --every=0", "", 0, 2), ("--kv-budget=3", "", 0, 4)],
)
def test_the_terminal_is_as_it_was_after_every_end(way: str, typed: str, number: int, code: int) -> None:
    arguments = ("stream", CLIP[2], "--live", "--ask", "q", *way.split())
    assert type_to(*arguments, typed=typed, ahead=False, number=number)[0] == code
    if not way:
        assert type_to(*CLIP, typed=typed, ahead=False, number=number)[0] == code


def test_completion_knows_commands_paths_and_policies(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clips").mkdir()
    assert complete("/he", "/he") == ["/help "]
    assert complete("/video cl", f"{tmp_path}/cl") == [f"{tmp_path}/clip.mp4", f"{tmp_path}/clips/"]
    assert complete("/policy win", "win") == ["window"]
    assert complete("/stats x", "x") == complete("what", "what") == []


@pytest.mark.skipif(sys.platform == "win32", reason="no terminal of that kind")
def test_the_terminal_is_silent_while_an_answer_is_written_and_echoes_again_after_an_error() -> None:
    code = (
        "import sys, termios\nfrom edgemllm.commands.terminal import no_echo\n"
        "echo = lambda: bool(termios.tcgetattr(0)[3] & termios.ECHO)\n"
        "found = [echo()]\n"
        "try:\n    with no_echo():\n        found.append(echo())\n        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n    found.append(echo())\n"
        "print(found)"
    )
    shown: list[bytes] = []

    def read(terminal: int) -> bytes:
        shown.append(os.read(terminal, 1024))
        return b""  # collected, not printed

    pty.spawn([sys.executable, "-c", code], read)
    assert b"[True, False, True]" in b"".join(shown)
    piped = code.replace("bool(termios.tcgetattr(0)[3] & termios.ECHO)", "0")
    done = subprocess.run([sys.executable, "-c", piped], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    assert done.stdout.strip() == "[0, 0, 0]", "no terminal, nothing to silence"


SMALL = ("chat", "--video", str(DEMO / "lecture.mp4"), "--kv-budget", "80", "--chunk", "16", "--json", "--max-tokens", "8")


def test_a_question_that_is_known_keeps_what_it_asks_about() -> None:
    """The red square is 100 s ago: the latest frames look at nothing, the question beforehand does."""
    question = "What number was with the red square?"
    window = (*SMALL, "--policy", "inf-mllm", "--set", "window=8", question)
    known, unknown = (json.loads(run(*window, *more).stdout) for more in ((), ("--no-focus",)))
    assert (known["focus"], unknown["focus"]) == ([question], [])
    assert (known["turns"][0]["answer"], unknown["turns"][0]["answer"]) == ("5", "not seen")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policy", "window", "--focus", "red"), "policy window takes no focus"),
        (("--policy", "inf-mllm", "--focus", " "), "a --focus is empty"),
        (("--policy", "inf-mllm", "--focus", "red", "--no-focus"), "--focus and --no-focus"),
    ],
)
def test_a_focus_that_means_nothing_is_refused(options: tuple[str, ...], says: str) -> None:
    done = run(*SMALL, *options, "x")
    assert done.returncode == 2
    assert says in done.stderr
    assert "try: " in done.stderr
