"""The command line in a process of its own, forked from one that has already imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

WAITING = 300
"""Seconds until a command counts as stuck."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["edgemllm.cli.main", "edgemllm.commands.chat.run", "edgemllm.models.loading"])


def run(
    *arguments: str, stdin: str | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`edgemllm ARGUMENTS` with no settings but those of `environment`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EDGEMLLM_")}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_text(stdin or "")
        process = _server.Process(target=_command, args=(arguments, files, cwd or Path.cwd(), {**clean, **environment}))
        process.start()
        process.join(WAITING)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{' '.join(arguments)}: not done after {WAITING} s\n{files[2].read_text()}")
        return subprocess.CompletedProcess(arguments, process.exitcode, files[1].read_text(), files[2].read_text())


def type_to(*arguments: str, typed: str, ahead: bool = True, number: int = 0) -> tuple[int, str]:
    """`edgemllm ARGUMENTS` on a terminal of its own, where `typed` is typed; its exit code and what the screen got.

    It is typed `ahead` of everything, or once the terminal hides it; then signal `number` is sent. The terminal is found
    as it was left.
    """
    master, slave = os.openpty()
    as_it_was = termios.tcgetattr(slave)
    process = _server.Process(target=_on_terminal, args=(arguments, os.ttyname(slave), Path.cwd()))
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


def _command(arguments: tuple[str, ...], files: list[Path], cwd: Path, environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(files[1], os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open(files[2], os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["edgemllm", *arguments]
    with files[0].open() as sys.stdin:
        from edgemllm.cli.main import main

        main()
