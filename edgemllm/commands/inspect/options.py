"""The options of `edgemllm inspect` that no other command has, or has otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import MEDIA, OUTPUT, Videos, option


@dataclass(frozen=True)
class InputOptions:
    """What is looked at."""

    video: Videos = field(default_factory=list)
    text: Annotated[list[Path], option("--text", help="A text file; repeatable.", panel=MEDIA)] = field(default_factory=list)


@dataclass(frozen=True)
class PictureOptions:
    """Which pictures, and where they go."""

    layer: Annotated[list[int], option("--layer", help="Layers to draw. [default: three]", panel=OUTPUT)] = field(
        default_factory=list
    )
    out: Annotated[Path, option("--out", "-o", help="Folder for the pictures.", panel=OUTPUT)] = Path("inspect")
