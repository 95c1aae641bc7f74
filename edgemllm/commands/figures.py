"""Pictures in files: refused before a long run where they could not be written after it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edgemllm.errors import EdgeError, MissingError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")


def check(path: Path, option: str) -> None:
    """Fail before a long run rather than after it: no matplotlib, no such format, no folder. `option` named the file."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{option} needs matplotlib, which is not installed", "pip install 'edgemllm[plot]'")
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{option} {path}: the ending says no format", f"one of {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise MissingError(f"no folder {path.parent} for the plot", f"mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} exists and is no file", "another name")


def save(figure: Figure, path: Path, hint: str = "the same run with --json and another place") -> None:
    """Write a picture. Raises EdgeError with `hint` where it cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise EdgeError(f"cannot write the plot {path}: {error.strerror or error}", hint) from error
