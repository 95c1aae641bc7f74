"""How far the frames of an archive reach, for whoever looks at it while it grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgemllm.archive.archive import Archive

GAP = 0.01
"""Share of the whole below which a gap is closed."""


@dataclass
class Extent:
    """Spans of seconds; each look at the archive reads only the frames that came since the one before."""

    spans: list[list[float]] = field(default_factory=list)
    _row: int = 0

    def look(self, archive: Archive) -> None:
        """Take in the frames that were added. Raises as reading an archive does."""
        with archive.database.reading() as sql:
            rows = sql.execute("SELECT id, time FROM frames WHERE id > ? ORDER BY id", (self._row,)).fetchall()
        if rows:
            self._row = rows[-1][0]
            times = [time for _, time in rows]
            self.spans = merged([*self.spans, *([time, time] for time in times)], max(self.end, max(times)))

    @property
    def end(self) -> float:
        """Return the latest second; 0 where there is none."""
        return self.spans[-1][1] if self.spans else 0.0


def merged(spans: Iterable[Sequence[float]], whole: float) -> list[list[float]]:
    """Return spans in order; those that overlap, or leave a gap that is small beside the whole, are made one."""
    gap = max(1.0, GAP * whole)
    found: list[list[float]] = []
    for first, last in sorted([first, last] for first, last in spans):
        if found and first - found[-1][1] <= gap:
            found[-1][1] = max(last, found[-1][1])
        else:
            found.append([first, last])
    return found
