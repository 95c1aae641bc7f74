"""The report of a machine: as lines for a screen, and as one object."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from typing import Any

from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.machine import Machine
from edgemllm.version import __version__

WORDS = {"ok": "ok", "note": "note", "fails": "FAILS"}
STATE, NAME = 7, 14
"""Columns of the first two words of a line."""
NARROW, WIDE = 40, 100


def lines(machine: Machine, checks: Sequence[Check], width: int) -> list[str]:
    """Return the report for a screen of `width` columns. What is to be typed is never broken."""
    width = max(NARROW, min(width, WIDE)) - 1
    indent = " " * (STATE + NAME)
    text = [*_wrapped(_system(machine), width, "", ""), ""]
    for check in checks:
        head = f"{WORDS[check.state]:{STATE}}{check.name:{NAME}}"
        text += _wrapped(check.found, width, head, indent)
        text += [f"{'':{STATE}}try: {cure}" for cure in check.cures]
    return [*text, "", _verdict(checks)]


def as_json(machine: Machine, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the fields of `doctor --json`."""
    release, here = machine.release, machine.memory
    return {
        "ok": healthy(checks),
        "system": {
            "edgemllm": __version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
            "board": machine.board or None,
            "jetson_linux": release.version if release else None,
            "jetpack": (release.jetpack or None) if release else None,
        },
        "device": machine.device,
        "profile": machine.profile.name,
        "memory": {"kind": here.kind, "free_bytes": here.free_bytes, "total_bytes": here.total_bytes},
        "checks": [check.as_json() for check in checks],
    }


def healthy(checks: Sequence[Check]) -> bool:
    """Return whether nothing fails."""
    return all(check.state != "fails" for check in checks)


def _system(machine: Machine) -> str:
    words = f"edgemllm {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if not machine.board:
        return words
    release = machine.release
    jetpack = f", JetPack {release.jetpack} (Jetson Linux {release.version})" if release else ""
    return f"{machine.board}{jetpack}, {words}"


def _verdict(checks: Sequence[Check]) -> str:
    failing = [check.name for check in checks if check.state == "fails"]
    notes = sum(check.state == "note" for check in checks)
    noted = f"{notes} note{'s' * (notes > 1)}" if notes else ""
    if failing:
        return f"does not work: {', '.join(failing)}{f'; {noted}' if noted else ''}"
    return f"everything works{f'; {noted}' if noted else ''}"


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
