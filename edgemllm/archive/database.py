"""The file of an archive: one SQLite database, readable by its owner alone, which one session at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgemllm.errors import EdgeError, MissingError, UsageError, opening, shortened

FORMAT = "edgemllm-archive/1"

SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE media (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY AUTOINCREMENT, medium INTEGER NOT NULL, time REAL NOT NULL, keys BLOB,
    level INTEGER NOT NULL DEFAULT 0, UNIQUE (medium, time)
);
CREATE INDEX frames_by_level ON frames (level, id);
CREATE TABLE pictures (id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TRIGGER frames_deleted AFTER DELETE ON frames BEGIN DELETE FROM pictures WHERE id = old.id; END;
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, medium INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    line INTEGER, time REAL, text TEXT NOT NULL, keys BLOB
);
CREATE INDEX passages_by_place ON passages (medium, first);
CREATE VIRTUAL TABLE words USING fts5(text, content='passages', content_rowid='id', tokenize='porter unicode61');
CREATE TRIGGER passages_added AFTER INSERT ON passages BEGIN
    INSERT INTO words (rowid, text) VALUES (new.id, new.text); END;
CREATE TRIGGER passages_deleted AFTER DELETE ON passages BEGIN
    INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text); END;
CREATE TABLE turns (id INTEGER PRIMARY KEY, time REAL, question TEXT NOT NULL, answer TEXT NOT NULL, looked TEXT NOT NULL);
"""


class Database:
    """An open archive; `writing`: begun where there is none, and locked against other writers.

    Raises MissingError for what is not there, damaged or no archive, and UsageError for a place that cannot be written.
    """

    def __init__(self, path: Path, writing: bool = True) -> None:
        self.path, self.writing = path, writing
        self._lock = -1
        with opening(path, UsageError), _translated(path):
            if writing:
                self._claim()
            elif not path.is_file():
                raise MissingError(f"no archive {path}", "edgemllm chat --archive FILE --video VIDEO begins one")
            # Where no log can be made beside a file that nobody writes to, it is read as it is.
            how = "mode=rw" if writing else "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
            self.sql = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)
            self.sql.isolation_level = None  # transactions are begun by name
            self.sql.execute("PRAGMA busy_timeout = 5000")
            if writing:
                self.sql.execute("PRAGMA journal_mode = WAL")
                self.sql.execute("PRAGMA synchronous = NORMAL")  # what a killed process had committed stays
                self.sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._begin()

    def _claim(self) -> None:
        """Make the file where there is none, for its owner alone, and keep other writers out."""
        if not self.path.parent.is_dir():
            raise MissingError(f"no folder {self.path.parent} for the archive", f"mkdir -p {self.path.parent}")
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.path} is a folder, device, pipe or socket, no archive", "name a regular file")
        if not os.access(self.path.parent, os.W_OK):  # the log is written beside it
            raise UsageError(f"folder {self.path.parent} cannot be written to", "another place for --archive")
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # SQLite locks otherwise: the two do not meet
        except BlockingIOError as error:
            raise UsageError(f"archive {self.path} is in use by another session", "another FILE, or wait") from error

    def _begin(self) -> None:
        """Make the tables of a new file; refuse what is no archive."""
        count = self.sql.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not count and self.writing:
            self.sql.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            self.about = {"format": FORMAT, "id": uuid.uuid4().hex}
        elif not count or not self.sql.execute("SELECT 1 FROM sqlite_schema WHERE name = 'about'").fetchone():
            raise MissingError(f"{self.path} is a database, but no archive", "the FILE of an --archive")
        found = self.about.get("format")
        if found != FORMAT:
            raise MissingError(f"{self.path} is an archive of format {found}, this version reads {FORMAT}")

    @property
    def about(self) -> dict[str, str]:
        """Return what is known of the whole archive: its identity, and the model that its index is made with."""
        return dict(self.sql.execute("SELECT name, value FROM about"))

    @about.setter
    def about(self, values: Mapping[str, str]) -> None:
        with self.transaction():
            self.sql.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values.items())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing, and at once. Raises EdgeError where the disk is full or the file is damaged."""
        with _translated(self.path):
            try:
                self.sql.execute("BEGIN IMMEDIATE")
                yield
                self.sql.execute("COMMIT")
            except BaseException:
                if self.sql.in_transaction:
                    self.sql.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection. Raises MissingError where the file turns out to be damaged."""
        with _translated(self.path):
            yield self.sql

    def check(self) -> None:
        """Read the whole file. Raises MissingError where it is damaged."""
        with _translated(self.path):
            found = [row[0] for row in self.sql.execute("PRAGMA integrity_check(3)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError(found[0].splitlines()[-1])
            missing = self.sql.execute("SELECT count(*) FROM frames WHERE id NOT IN (SELECT id FROM pictures)").fetchone()[0]
            if missing:
                raise sqlite3.DatabaseError(f"{missing} frames have lost their picture")

    @property
    def nbytes(self) -> int:
        """Return the bytes in use, without pages that were freed."""
        pages, free, size = (self._pragma(name) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def _pragma(self, name: str) -> int:
        return int(self.sql.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        with contextlib.suppress(sqlite3.Error):
            self.sql.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Make one line of SQLite's errors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        name = shortened(str(path))
        if "locked" in str(error):
            raise UsageError(f"archive {name} is in use by another program", "wait, or another FILE") from error
        raise EdgeError(f"archive {name}: {error}", "make room, or another place for --archive") from error
    except sqlite3.DatabaseError as error:
        name = shortened(str(path))
        hint = f"an older copy; or what can still be read: sqlite3 {name} .recover"
        raise MissingError(f"archive {name} is damaged, or no archive: {error}", hint) from error
