"""What a session has seen, read and answered, on disk: frames as JPEG, passages of text, turns, and keys to find them by."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemllm.archive.database import Database
from edgemllm.archive.thinning import thin
from edgemllm.errors import EdgeError

BLOCK = 1024
"""Rows read at once when all keys are looked through."""

Span = tuple[float, float]
"""Seconds of video, or characters of text, first and last."""


@dataclass(frozen=True)
class Place:
    """A frame or passage of an archive, without its content."""

    id: int
    medium: int
    first: float
    """The second of a frame, or the first character of a passage."""
    last: float
    words: bool = False
    """Whether it is text."""
    line: int = 0
    """Line of a text; 0 for what has a second instead."""

    @property
    def timed(self) -> bool:
        """Return whether it is a part of a video, a frame or a subtitle, whose place is a second."""
        return not self.line


class Archive:
    """An open archive that may grow to `limit` bytes; `say` is given what a user has to know.

    A write that fails (a full disk) ends archiving with one line; what is there can still be read. Raises as `Database` does.
    """

    def __init__(
        self, path: Path, limit: int | None = None, writing: bool = True, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.database, self.limit, self.say = Database(path, writing), limit, say
        self.path, self.growing, self._full = path, writing, False

    # ---- writing -----------------------------------------------------------------------------------------------

    def medium(self, name: str) -> int:
        """Return the number of a video or text, which stays the same for its name."""
        with self.database.reading() as sql:
            if self.growing:
                self._write(lambda: sql.execute("INSERT OR IGNORE INTO media (name) VALUES (?)", (name,)))
            row = sql.execute("SELECT id FROM media WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def add_frames(self, medium: int, frames: Sequence[tuple[float, bytes, bytes | None]]) -> None:
        """Keep frames: second, JPEG and keys of each. A frame of the same second gives way."""

        def write() -> None:
            for time, jpeg, keys in frames:
                self.database.sql.execute("DELETE FROM frames WHERE medium = ? AND time = ?", (medium, time))
                row = (medium, time, keys)
                made = self.database.sql.execute("INSERT INTO frames (medium, time, keys) VALUES (?, ?, ?)", row)
                self.database.sql.execute("INSERT INTO pictures VALUES (?, ?)", (made.lastrowid, jpeg))

        self._write(write)
        self._thin()

    def add_passages(self, medium: int, passages: Sequence[dict[str, Any]]) -> None:
        """Keep passages: `first` and `last` (excluded) character, `line`, `time`, `text`, `keys`; what they overlap goes."""

        def write() -> None:
            sql = self.database.sql
            for each in passages:
                place = (medium, each["first"], each["last"])
                sql.execute("DELETE FROM passages WHERE medium = ? AND last > ? AND first < ?", place)
                sql.execute(
                    "INSERT INTO passages (medium, first, last, line, time, text, keys) VALUES "
                    "(:medium, :first, :last, :line, :time, :text, :keys)",
                    {"medium": medium, **each},
                )

        self._write(write)
        self._thin()

    def add_turn(self, time: float, question: str, answer: str, looked: Sequence[Span]) -> None:
        """Keep a question with its answer and what was looked at again for it."""
        row = (time, question, answer, json.dumps(looked))
        sql = "INSERT INTO turns (time, question, answer, looked) VALUES (?, ?, ?, ?)"
        self._write(lambda: self.database.sql.execute(sql, row))

    def delete(self, medium: int, first: float, last: float) -> int:
        """Delete frames from second `first` to `last`, or the passages that these characters touch; returns how many."""
        sql = self.database.sql
        sql.execute("PRAGMA secure_delete = ON")  # overwritten, not only forgotten
        with self.database.transaction():
            frames = sql.execute("DELETE FROM frames WHERE medium = ? AND time >= ? AND time <= ?", (medium, first, last))
            place = (medium, first, last)
            texts = sql.execute("DELETE FROM passages WHERE medium = ? AND last > ? AND first <= ?", place)
        sql.execute("PRAGMA incremental_vacuum").fetchall()
        return frames.rowcount + texts.rowcount

    def _write(self, work: Callable[[], object]) -> None:
        """Write all or nothing; the first failure ends archiving."""
        if not self.growing:
            return
        try:
            with self.database.transaction():
                work()
        except EdgeError as error:
            self.give_up(error)

    def give_up(self, error: EdgeError) -> None:
        """End archiving with one line: the disk is full, or the file damaged."""
        if self.growing:
            self.growing = False
            self.say(f"warning: archiving ends here, watching continues: {error.message}")

    # ---- the limit ---------------------------------------------------------------------------------------------

    def _thin(self) -> None:
        """Make room where the archive is full: every other frame of the oldest stretch goes, of all equally thinned ones."""
        limit = self.limit
        if limit is None or not self.growing or self.database.nbytes <= limit:
            return
        if not self._full:
            self._full = True
            self.say(f"archive full at {limit} bytes: from now on every other frame of its oldest stretch gives way")
        self._write(lambda: thin(self.database, limit))

    # ---- reading -----------------------------------------------------------------------------------------------

    def media(self) -> dict[int, str]:
        """Return the names of videos and texts by their numbers."""
        with self.database.reading() as sql:
            return dict(sql.execute("SELECT id, name FROM media ORDER BY id"))

    def frame_blocks(self) -> Iterator[tuple[list[Place], list[bytes]]]:
        """Return all indexed frames with their keys, some at a time."""
        return self._blocks("SELECT id, medium, time, time, 0, 0, keys FROM frames WHERE keys NOT NULL AND id > ?")

    def passage_blocks(self) -> Iterator[tuple[list[Place], list[bytes]]]:
        """Return all indexed passages with their keys, some at a time."""
        return self._blocks("SELECT id, medium, first, last, 1, line, keys FROM passages WHERE keys NOT NULL AND id > ?")

    def _blocks(self, query: str) -> Iterator[tuple[list[Place], list[bytes]]]:
        last = -1
        while True:
            with self.database.reading() as sql:
                rows = sql.execute(f"{query} ORDER BY id LIMIT {BLOCK}", (last,)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [_place(row) for row in rows], [row[6] for row in rows]

    def matching(self, question: str, count: int = 64) -> list[Place]:
        """Return the passages that share words with a question, the best (BM25) first."""
        words = dict.fromkeys(re.findall(r"\w+", question.lower()))
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        with self.database.reading() as sql:
            rows = sql.execute(
                "SELECT p.id, medium, first, last, 1, line FROM words JOIN passages p ON p.id = words.rowid "
                "WHERE words MATCH ? ORDER BY bm25(words) LIMIT ?",
                (query, count),
            ).fetchall()
        return [_place(row) for row in rows]

    def around(self, place: Place, count: int = 2) -> list[Place]:
        """Return the neighbours of a place, the nearest first, at most `count` on each side."""
        table, first, last = ("passages", "first", "last") if place.words else ("frames", "time", "time")
        line = "line" if place.words else "0"
        query = f"SELECT id, medium, {first}, {last}, {int(place.words)}, {line} FROM {table} WHERE medium = ? AND {first}"
        with self.database.reading() as sql:
            before = sql.execute(f"{query} < ? ORDER BY {first} DESC LIMIT ?", (place.medium, place.first, count)).fetchall()
            after = sql.execute(f"{query} > ? ORDER BY {first} LIMIT ?", (place.medium, place.first, count)).fetchall()
        pairs = itertools.chain.from_iterable(itertools.zip_longest(before, after))
        return [_place(row) for row in pairs if row]

    def newest(self, medium: int, count: int) -> list[Place]:
        """Return the newest frames of a video, in their order."""
        query = "SELECT id, medium, time, time FROM frames WHERE medium = ? ORDER BY time DESC LIMIT ?"
        with self.database.reading() as sql:
            return [Place(*row) for row in reversed(sql.execute(query, (medium, count)).fetchall())]

    def picture(self, place: Place) -> bytes:
        """Return the JPEG of a frame."""
        with self.database.reading() as sql:
            row = sql.execute("SELECT jpeg FROM pictures WHERE id = ?", (place.id,)).fetchone()
        return bytes(row[0]) if row else b""

    def text(self, place: Place) -> str:
        """Return the words of a passage."""
        with self.database.reading() as sql:
            row = sql.execute("SELECT text FROM passages WHERE id = ?", (place.id,)).fetchone()
        return str(row[0]) if row else ""

    @property
    def identity(self) -> str:
        """Return what no other archive has."""
        return self.database.about["id"]

    def written(self) -> int:
        """Return how many frames and passages were ever written."""
        with self.database.reading() as sql:
            return int(sql.execute("SELECT ifnull(sum(seq), 0) FROM sqlite_sequence").fetchone()[0])

    def within(self, medium: int, first: float, last: float) -> list[Place]:
        """Return the frames from second `first` to `last`, or the passages that these characters touch, in their order."""
        frames = "SELECT id, medium, time, time, 0, 0 FROM frames WHERE medium = ? AND time >= ? AND time <= ? ORDER BY time"
        texts = (
            "SELECT id, medium, first, last, 1, line FROM passages WHERE medium = ? AND last > ? AND first <= ? ORDER BY first"
        )
        with self.database.reading() as sql:
            return [_place(row) for query in (frames, texts) for row in sql.execute(query, (medium, first, last))]

    def counts(self) -> dict[str, int]:
        """Return how many frames, passages and turns there are."""
        with self.database.reading() as sql:
            return {name: int(sql.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in NAMES}

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def _place(row: Sequence[Any]) -> Place:
    number, medium, first, last, words, line, *_ = row
    return Place(number, medium, first, last, bool(words), line or 0)


NAMES = ("frames", "passages", "turns")
