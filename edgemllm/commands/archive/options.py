"""The options with which a command keeps an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import MEMORY, option


@dataclass(frozen=True)
class ArchiveOptions:
    """Where everything is kept, and how much of the cache a second look may take."""

    archive: Annotated[
        Path | None,
        option("--archive", help="Keep everything in this file, and look again at the right parts when asked.", panel=MEMORY),
    ] = None
    archive_limit: Annotated[
        str,
        option("--archive-limit", help="Largest size of the archive; a full one keeps every other old frame.", panel=MEMORY),
    ] = "2GiB"
    archive_share: Annotated[
        float,
        option(
            "--archive-share",
            help="Share of the KV budget for what is looked at again; 0: nothing is.",
            panel=MEMORY,
            min=0,
            max=0.5,
        ),
    ] = 0.25
