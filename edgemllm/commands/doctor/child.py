"""Run what may crash or hang (a driver, a kernel, a dead network drive) in another process, and learn what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgemllm.commands.doctor import probes; probes.main(sys.argv[2], sys.argv[3])"
)
"""It finds modules where this process does: `python -m` and `-c` would look into the current folder first."""
GRACE_S = 2.0
"""Seconds after being killed: a process that waits for a driver does not end even then, and is left alone."""


@dataclass(frozen=True)
class Outcome:
    """What a group of probes found, step by step, as far as it came."""

    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By step; a step that raised has only `error`."""

    unfinished: str = ""
    """The step in which the process ended without a word."""

    reason: str = ""
    """How it ended then: `killed by SIGSEGV`, `no answer in 60 s`."""

    def of(self, step: str) -> Mapping[str, Any]:
        """Return a step's facts; where it has none, `error` says why, and is empty where it was never begun."""
        return self.facts.get(step, {"error": self.reason if step == self.unfinished else ""})


def run(group: str, seconds: float) -> Outcome:
    """Run the probes of `group` in another process for at most `seconds`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answers, output = Path(folder, "answers"), Path(folder, "output")
        command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), group, str(answers)]
        with output.open("wb") as sink:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )  # fmt: skip
            try:
                ended = _end(process.wait(seconds))
            except subprocess.TimeoutExpired:
                ended = f"no answer in {seconds:.0f} s"
            finally:
                _kill(process)
        return _outcome(answers, ended, output)


def _end(code: int) -> str:
    """Return what an exit status means; nothing for success."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started, without waiting for ever."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _outcome(answers: Path, ended: str, output: Path) -> Outcome:
    facts: dict[str, dict[str, Any]] = {}
    begun = "start"
    lines = answers.read_text().splitlines() if answers.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last one of a process that was killed while writing
            entry = json.loads(line)
            begun = entry.pop("step")
            if entry:
                facts[begun] = entry
    if not ended:
        return Outcome(facts)
    last = output.read_text(errors="replace").strip().rpartition("\n")[2]
    return Outcome(facts, begun, f"{ended}: {last}" if last and not ended.startswith("no answer") else ended)
