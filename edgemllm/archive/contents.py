"""What an archive holds, for whoever lists it."""

from __future__ import annotations

import json
from typing import Any

from edgemllm.archive.archive import Archive


def summary(archive: Archive) -> list[dict[str, Any]]:
    """Return for each video or text its name, and how much of it there is, from where to where."""
    query = (
        "SELECT name, count(time), ifnull(min(time), 0), ifnull(max(time), 0), "
        "(SELECT count(*) FROM passages p WHERE p.medium = m.id), "
        "(SELECT ifnull(sum(length(text)), 0) FROM passages p WHERE p.medium = m.id) "
        "FROM media m LEFT JOIN frames f ON f.medium = m.id GROUP BY m.id ORDER BY m.id"
    )
    names = ("name", "frames", "first_s", "last_s", "passages", "characters")
    with archive.database.reading() as sql:
        return [dict(zip(names, row, strict=True)) for row in sql.execute(query)]


def turns(archive: Archive) -> list[dict[str, Any]]:
    """Return what was asked and answered, with what was looked at again."""
    with archive.database.reading() as sql:
        rows = sql.execute("SELECT time, question, answer, looked FROM turns ORDER BY id").fetchall()
    return [{"time": row[0], "question": row[1], "answer": row[2], "recalled": json.loads(row[3])} for row in rows]
