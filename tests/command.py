"""The command line in a process of its own, forked from one that has already imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
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
