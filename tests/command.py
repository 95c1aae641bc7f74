"""The command line in a process of its own, forked from one that has already imported what takes seconds."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

WAITING = 300
"""Seconds until a command counts as stuck."""

fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload([
    "edgemllm.cli.main", "edgemllm.models.loading", "edgemllm.models.families.llava_onevision",
    *(f"edgemllm.commands.{name}.command" for name in ("batch", "chat", "stream", "plan", "recall", "perplexity", "bench")),
    "edgemllm.commands.serve.command",
    "transformers.models.llava_onevision.modeling_llava_onevision", "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip", "transformers.models.auto.tokenization_auto", "transformers.generation.utils",
    "transformers.convert_slow_tokenizer", "transformers.integrations.mistral", "jinja2.sandbox", "psutil",
])  # fmt: skip


class Running:
    """A command that runs: what it has written so far, and how it ends."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        stdin: str | bytes | Path,
        cwd: Path | None,
        environment: dict[str, str],
        script: Path | None = None,
        full: str = "",
    ) -> None:
        self.arguments = arguments
        clean = {key: value for key, value in os.environ.items() if not key.startswith("EDGEMLLM_")}
        self._folder = tempfile.TemporaryDirectory()
        self._files = files = [Path(self._folder.name, name) for name in ("in", "out", "err")]
        if isinstance(stdin, Path):  # a FIFO: a pipe that stays open
            files[0].symlink_to(stdin)
        else:
            files[0].write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        for file, name in zip(files[1:], ("stdout", "stderr"), strict=True):
            if name == full:
                file.symlink_to("/dev/full")
            else:
                file.touch()
        known = (arguments, files, cwd or Path.cwd(), {**clean, **environment}, script, bool(full))
        self.process = fork_server.Process(target=_command, args=known)
        self.process.start()

    @property
    def stdout(self) -> str:
        return self._text(1)

    @property
    def stderr(self) -> str:
        return self._text(2)

    def _text(self, number: int) -> str:
        file = self._files[number]
        return file.read_text() if file.is_file() else ""

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, words: str) -> None:
        """Wait until it has written `words`."""
        ends = time.monotonic() + WAITING
        while words not in self.stdout + self.stderr:
            waiting = self.process.is_alive() and time.monotonic() < ends
            assert waiting or words in self.stdout + self.stderr, f"no {words!r}: {self.stderr}"
            time.sleep(0.02)

    def end(self, seconds: float = WAITING) -> subprocess.CompletedProcess[str]:
        """Wait for its end. Raises TimeoutError, and kills it, after `seconds`."""
        self.process.join(seconds)
        with self._folder:
            if self.process.exitcode is None:
                self.process.kill()
                raise TimeoutError(f"{' '.join(self.arguments)}: not done after {seconds} s\n{self.stderr}")
            return subprocess.CompletedProcess(self.arguments, self.process.exitcode, self.stdout, self.stderr)


def start(*arguments: str, stdin: str | bytes | Path = "", cwd: Path | None = None, **environment: str) -> Running:
    """Begin `edgemllm ARGUMENTS` with no settings but those of `environment`."""
    return Running(arguments, stdin, cwd, environment)


def start_with_a_full(output: str, *arguments: str) -> Running:
    """Begin `edgemllm ARGUMENTS` with an `output`, stdout or stderr, that takes nothing: a full disk."""
    return Running(arguments, "", None, {}, full=output)


def start_script(script: Path, *arguments: str, **environment: str) -> Running:
    """Begin `python SCRIPT ARGUMENTS` in the script's folder."""
    return Running(arguments, "", script.parent, environment, script)


def run(
    *arguments: str, stdin: str | bytes = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `edgemllm ARGUMENTS` to its end."""
    return start(*arguments, stdin=stdin, cwd=cwd, **environment).end()


def type_to(*arguments: str, typed: str, ahead: bool = True, number: int = 0) -> tuple[int, str]:
    """`edgemllm ARGUMENTS` on a terminal of its own, where `typed` is typed; its exit code and what the screen got.

    It is typed `ahead` of everything, or once the terminal hides it; then signal `number` is sent. The terminal is found
    as it was left.
    """
    master, slave = os.openpty()
    as_it_was = termios.tcgetattr(slave)
    process = fork_server.Process(target=_on_terminal, args=(arguments, os.ttyname(slave), Path.cwd()))
    process.start()
    shown, ends = b"", time.monotonic() + WAITING
    while not ahead and termios.tcgetattr(slave)[3] & termios.ECHO and process.is_alive() and time.monotonic() < ends:
        time.sleep(0.01)
    os.write(master, typed.encode())
    if number and process.pid is not None:
        os.kill(process.pid, number)
    while process.is_alive() and time.monotonic() < ends:
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 65536)
    process.kill()
    process.join()
    while select.select([master], [], [], 0)[0]:
        shown += os.read(master, 65536)
    left = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    assert left == as_it_was, "the terminal is not as it was"
    return process.exitcode or 0, shown.decode(errors="replace").replace("\r\n", "\n")


def _on_terminal(arguments: tuple[str, ...], terminal: str, cwd: Path) -> None:
    os.setsid()
    for number in (0, 1, 2):
        opened = os.open(terminal, os.O_RDWR)  # the first that a session opens is its terminal
        os.dup2(opened, number)
    os.chdir(cwd)
    for key in [key for key in os.environ if key.startswith("EDGEMLLM_")]:
        del os.environ[key]
    os.environ["TERM"] = "dumb"
    # The interpreter's own were opened on whatever the server had.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
    sys.argv = ["edgemllm", *arguments]
    from edgemllm.cli.main import main

    main()


def as_an_interpreter(main: Callable[[], object]) -> None:
    """Run `main`, and end with all that an interpreter does then: report an error, wait for threads, take modules down."""
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
        sys.last_type, sys.last_value, sys.last_traceback = found = sys.exc_info()
        sys.excepthook(*found)  # type: ignore[arg-type]
    ctypes.pythonapi.Py_Exit(code)


def _command(
    arguments: tuple[str, ...], files: list[Path], cwd: Path, environment: dict[str, str], script: Path | None, whole: bool
) -> None:
    """Run a script, or the command; to the `whole` of an interpreter's end or not, which takes longer."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(files[1], os.O_WRONLY), 1)
    os.dup2(os.open(files[2], os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell ignores Ctrl-C
    if script is not None:
        sys.argv = [str(script), *arguments]
        as_an_interpreter(lambda: runpy.run_path(str(script), run_name="__main__"))
    sys.argv = ["edgemllm", *arguments]
    with files[0].open() as sys.stdin:
        from edgemllm.cli.main import main

        if whole:
            as_an_interpreter(main)
        main()
