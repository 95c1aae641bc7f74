"""What `edgemllm doctor` does: look, try, report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence

import typer

from edgemllm.commands.doctor import libraries, report, system
from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.machine import Machine, examine
from edgemllm.commands.doctor.versions import versions
from edgemllm.commands.events import headed, write

FAILING = 7
"""The exit code where something will not work."""
CHECKS: Sequence[Callable[[Machine], Check | None]] = (
    libraries.torch, libraries.device, system.profile, system.memory, libraries.bitsandbytes, libraries.opencv, versions,
    system.contiguous, system.power, system.desktop, system.swap, system.disk,
)  # fmt: skip
"""In the order of the report."""


def doctor(json: bool) -> None:
    """Run the command. Raises typer.Exit with FAILING where a check fails."""
    if not json and sys.stderr.isatty():
        print("trying torch, bitsandbytes and OpenCV ...", file=sys.stderr, flush=True)
    machine = examine()
    checks = diagnose(machine)
    if json:
        write(headed("doctor", report.as_json(machine, checks)))
    else:
        print("\n".join(report.lines(machine, checks, shutil.get_terminal_size().columns)))
    if not report.healthy(checks):
        raise typer.Exit(FAILING)


def diagnose(machine: Machine) -> list[Check]:
    """Return the checks that mean something on this machine."""
    return [found for check in CHECKS if (found := check(machine)) is not None]
