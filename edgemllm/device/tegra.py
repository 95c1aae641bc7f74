"""What a Jetson says of itself in its files: the release of its system, and its power modes. No root is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

JETPACKS = {35: "5", 36: "6", 38: "7.0 or 7.1", 39: "7.2"}
"""The JetPack that a major release of Jetson Linux belongs to."""


@dataclass(frozen=True)
class Release:
    """A release of Jetson Linux (L4T)."""

    numbers: tuple[int, ...]

    @property
    def version(self) -> str:
        """Return it as NVIDIA writes it, 36.4.7."""
        return ".".join(map(str, self.numbers))

    @property
    def jetpack(self) -> str:
        """Return the JetPack it came with; empty where that is not known."""
        return JETPACKS.get(self.numbers[0], "")


@dataclass(frozen=True)
class PowerMode:
    """A mode of nvpmodel."""

    number: int
    name: str
    memory_hz: int | None
    """The most that the memory's clock may have; None: as much as it can."""


def release(root: Path = Path("/")) -> Release | None:
    """Return the release of Jetson Linux, from a line such as `# R36 (release), REVISION: 4.7, ...`; None elsewhere."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    return Release((int(match[1]), *map(int, match[2].strip(".").split(".")))) if match else None


def power_modes(root: Path = Path("/")) -> list[PowerMode]:
    """Return the modes that this board has; none where nvpmodel is not set up."""
    _, *blocks = re.split(r"^<\s*POWER_MODEL\s+", _text(root / "etc/nvpmodel.conf"), flags=re.MULTILINE)
    modes = []
    for block in blocks:
        head = re.match(r"ID=(\d+)\s+NAME=([^\s>]+)", block)
        memory = re.search(r"^EMC MAX_FREQ (-?\d+)", block, re.MULTILINE)
        hertz = int(memory[1]) if memory else -1
        if head:
            modes.append(PowerMode(int(head[1]), head[2], hertz if hertz > 0 else None))
    return modes


def power_mode(root: Path = Path("/")) -> PowerMode | None:
    """Return the mode that the board is in; None where nothing says so."""
    match = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    return next((mode for mode in power_modes(root) if match and mode.number == int(match[1])), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
