"""Making room in a full archive, evenly over time: what is left of every part of a stream is less dense the older it is."""

from __future__ import annotations

from edgemllm.archive.database import Database

STRETCH = 256
"""Frames that are thinned at once, and as many of the newest that never are."""


def thin(database: Database, limit: int) -> None:
    """Drop every other frame of the oldest stretch that was thinned least, until the archive fits; then the oldest passages."""
    while database.nbytes > limit:
        frames = _stretch(database)
        if len(frames) > 1:
            database.sql.executemany("DELETE FROM frames WHERE id = ?", [(each,) for each in frames[1::2]])
            database.sql.executemany("UPDATE frames SET level = level + 1 WHERE id = ?", [(each,) for each in frames[::2]])
            continue
        oldest = "SELECT id FROM passages ORDER BY id LIMIT ?"
        if not database.sql.execute(f"DELETE FROM passages WHERE id IN ({oldest})", (STRETCH,)).rowcount:
            return


def _stretch(database: Database) -> list[int]:
    """Return the oldest of the frames that were thinned least, without the newest of all."""
    count = database.sql.execute("SELECT count(*) FROM frames").fetchone()[0]
    spared = min(STRETCH, count // 2)
    row = database.sql.execute("SELECT id FROM frames ORDER BY id DESC LIMIT 1 OFFSET ?", (spared,)).fetchone()
    found = database.sql.execute(
        "SELECT id FROM frames WHERE level = (SELECT min(level) FROM frames WHERE id <= :last) AND id <= :last "
        "ORDER BY id LIMIT :count",
        {"last": row[0] if row else 0, "count": STRETCH},
    )
    return [number for (number,) in found]
