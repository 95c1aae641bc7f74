"""What a hostile user, a bad disk or an init system brings: one line and a documented exit code, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import run
from typer.testing import CliRunner

from edgemllm.cli.main import app

LONG = "x" * 5000
BIG = "9" * 23

WORDS: dict[str, tuple[int, str, list[str]]] = {
    "video of 5000 letters": (6, "(5000 characters) cannot be opened: file name too long", ["chat", "--video", LONG, "hi"]),
    "model of 5000 letters": (3, "xxx... (5000 characters) cannot be opened", ["chat", "--model", LONG, "hi"]),
    "text of 5000 letters": (3, "xxx... (5000 characters) cannot be opened", ["perplexity", "--text", LONG]),
    "policy of 5000 letters": (2, "xxx... (5003 characters): File name too long", ["chat", "--policy", LONG + ".py", "hi"]),
    "seed": (2, "--seed", ["chat", "--seed", BIG, "hi"]),
    "stream seed": (2, "--seed", ["recall", "--seed", "-1"]),
    "temperature": (2, "--temperature inf", ["chat", "-t", "inf", "hi"]),
    "tokens": (2, "--tokens '1e400'", ["perplexity", "--tokens", "1e400", "--text", "page.txt"]),
    "profile": (2, "not valid TOML", ["profiles", "/etc/passwd"]),
    "context": (4, "a prompt of 1000G tokens takes", ["bench", "--context", "1e12"]),
    "folder": (2, "cannot make the folder", ["inspect", "--text", "page.txt", "--out", "/proc/x"]),
    "empty text": (3, "is empty", ["inspect", "--text", "empty.txt", "hi"]),
    "plot on a FIFO": (2, "fifo.png exists and is no file", ["perplexity", "--text", "page.txt", "--plot", "fifo.png"]),
    "UTF-16": (3, "UTF-16 text, not UTF-8", ["perplexity", "--text", "utf16.txt"]),
    "binary": (3, "is no text", ["perplexity", "--text", "binary.txt"]),
    "weights file": (3, "--model here", ["chat", "--model", "here/model.safetensors", "hi"]),
    "text as video": (6, "try: --text", ["chat", "--video", "page.txt", "hi"]),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_mistake_is_one_line_with_a_documented_code(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, words, arguments = WORDS[case]
    if "plot" in case or "folder" in case or case == "empty text":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("page.txt").write_text("A page of text.\n" * 20)
    Path("empty.txt").touch()
    Path("utf16.txt").write_text("A page.\n", encoding="utf-16")
    Path("binary.txt").write_bytes(b"a\0\xff" * 99)
    os.mkfifo("fifo.png")
    Path("here").mkdir()
    Path("here/model.safetensors").touch()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert "unexpected" not in done.stderr
    assert len(done.stderr) < 1000


def test_a_configuration_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "edgemllm.toml").write_bytes(b'system = "\xff\xfe"\n')
    done = run("policies", cwd=tmp_path)
    assert done.returncode == 2
    assert "edgemllm.toml is not valid TOML" in done.stderr


def test_bytes_that_are_not_utf8_end_no_conversation() -> None:
    """Neither on standard input, nor as an argument."""
    words = ("chat", "--max-tokens", "3", "-q")
    done = run(*words, stdin=b"\xff\xfe hi\nWhat is it?\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    done = run(*words, os.fsdecode(b"\xff\xfe hi"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "closed", "code", "says"),
    [
        ("chat", "<&-", 0, "no question on standard input"),
        ("profiles", ">&-", 0, ""),
        ("profiles none", "2>&-", 2, ""),
        ("chat --max-tokens 2 hi", "<&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_descriptors_are_no_error(command: str, closed: str, code: int, says: str) -> None:
    """Cron and some init systems start so."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m edgemllm {command} {closed}', sys.executable], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "unexpected" not in done.stderr


def test_a_module_that_is_run_names_the_command_to_type() -> None:
    done = subprocess.run([sys.executable, "-m", "edgemllm", "chta"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "try: edgemllm --help" in done.stderr


@pytest.mark.parametrize("place", ["edgemllm.toml", "EDGEMLLM_DTYPE"])
def test_an_option_that_nobody_typed_names_its_source(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if place == "edgemllm.toml":
        Path(place).write_text('dtype = "float12"\n')
    else:
        monkeypatch.setenv(place, "float12")
    done = CliRunner().invoke(app, ["chat", "hi"])
    assert done.exit_code == 2
    assert "--dtype float12 is unknown; --dtype (" in done.stderr
    assert place in done.stderr


@pytest.mark.parametrize("name", ["video", "model", "kv-budget"])
def test_an_empty_value_that_nobody_typed_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variable = f"EDGEMLLM_{name.replace('-', '_').upper()}"
    Path("edgemllm.toml").write_text(f'{name} = ""\nsystem = ""\n')
    done = CliRunner().invoke(app, ["chat", "hi"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 2)
    assert done.stderr.startswith(f"error: the value of --{name} is empty (in edgemllm.toml)")
    Path("edgemllm.toml").write_text('[chat]\nimage = ["here.png", ""]\n')
    assert "--image is empty" in CliRunner().invoke(app, ["chat", "hi"]).stderr
    Path("edgemllm.toml").unlink()
    done = CliRunner().invoke(app, ["chat", "hi"], env={variable: ""})
    assert done.exit_code == 2
    assert f"--{name} is empty ({variable}= in the environment)" in done.stderr
    typed = CliRunner().invoke(app, ["chat", "hi", f"--{name}", "none"], env={variable: "", "EDGEMLLM_SYSTEM": ""})
    assert "is empty" not in typed.stderr, "what is typed comes first"


def test_a_conversation_survives_any_line(tmp_path: Path) -> None:
    """Of a terminal: paths that are too long, and bytes that are not UTF-8."""
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "edgemllm", "chat", "--max-tokens", "2"]
    with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        os.close(theirs)
        path = b"x" * 400
        for line in (b"/load " + path, b"/video " + path, b"/image " + path, b"/save " + path, b"\xff\xfe hi", b"/exit"):
            os.write(ours, line + b"\n")
        _, errors = process.communicate(timeout=200)
        os.close(ours)
    assert process.returncode == 0, errors
    assert sum(line.startswith("error: ") for line in errors.decode().splitlines()) == 4, errors
    assert b"unexpected" not in errors
