"""The options with which a command keeps an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import MEDIA, MEMORY, option
from edgemllm.device.memory import parse_bytes
from edgemllm.errors import UsageError
from edgemllm.units import parse_time

AROUND_S = 5.0


LEAST = 1 << 20
"""Bytes of the smallest archive: an empty one has some fifty KiB of tables."""


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

    @property
    def most_archive_bytes(self) -> int:
        """Return `--archive-limit`. Raises UsageError for one that holds nothing."""
        limit = parse_bytes(self.archive_limit)
        if limit < LEAST:
            raise UsageError(f"--archive-limit {self.archive_limit} holds nothing", "--archive-limit 2GiB")
        return limit


@dataclass(frozen=True)
class FolderOptions(ArchiveOptions):
    """The same for a server, whose sessions have a file each."""

    archive: Annotated[
        Path | None,
        option("--archive", help="Keep an archive of each session in this folder. [default: none is kept]", panel=MEMORY),
    ] = None


@dataclass(frozen=True)
class SpanOptions:
    """A part of what an archive holds."""

    start: Annotated[str | None, option("--start", help="The span begins at this time, or character.", panel=MEDIA)] = None
    end: Annotated[str | None, option("--end", help="The span ends at this time, or character.", panel=MEDIA)] = None
    around: Annotated[str | None, option("--around", help="The span is five seconds to both sides.", panel=MEDIA)] = None
    source: Annotated[str | None, option("--source", help="Which video or text, where there are several.", panel=MEDIA)] = None

    def seconds(self) -> tuple[float, float]:
        """Return first and last second (or character). Raises UsageError where nothing was said: everything is never meant."""
        if self.around is not None and self.start is self.end is None:
            middle = parse_time(self.around)
            return middle - AROUND_S, middle + AROUND_S
        if self.around is not None or (self.start is None and self.end is None):
            raise UsageError("which span?", "--around 00:12:30, or --start 00:12:00 --end 00:13:00")
        first = parse_time(self.start) if self.start else 0.0
        last = parse_time(self.end) if self.end else float("inf")
        if last < first:
            raise UsageError(f"the span ends at {self.end}, before it begins at {self.start}", "--start before --end")
        return first, last
