"""Where measurements are written, and the Markdown that all of them share."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

TOP = Path(__file__).parents[2]
FOLDER = TOP / "docs" / "measurements"


def page(device: str, folder: Path | None, about: str = "") -> Path:
    """Name the page of a device; an `about` ends its name."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    stem = re.sub("[^a-z0-9]+", "-", f"{name} {about}".lower()).strip("-")
    return (folder or FOLDER) / f"{stem}.md"


def machine() -> str:
    """Say what this machine is and which versions ran."""
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions('torch', 'transformers')}"


def versions(*packages: str) -> str:
    """List installed versions, "torch 2.13.0, transformers 5.24.0"."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def row(cells: Iterable[object]) -> str:
    """Write one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(names: Sequence[str], left: Collection[str]) -> str:
    """Write the two lines above a table; the columns in `left` are aligned to the left, all others to the right."""
    return f"{row(names)}\n|{'|'.join('---' if name in left else '---:' for name in names)}|"


def table(names: Sequence[str], rows: Iterable[Iterable[object]], left: Collection[str]) -> str:
    """Write a whole table."""
    return "\n".join([head(names, left), *map(row, rows)])
