"""One piece of work: a video or a text, and what is asked about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """A video or a text (a path or an address), and its questions, asked one after the other."""

    id: str
    questions: tuple[str, ...]
    video: str | None = None
    text: str | None = None

    @property
    def source(self) -> str:
        """Return the path or address."""
        return self.video or self.text or ""

    def as_json(self) -> str:
        """Return it as a text that `of` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Work:
        """Return the work that was written by `as_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "questions": tuple(fields["questions"])})

    def fingerprint(self, job: str) -> str:
        """Return a hash of everything that the answers depend on; `job` is that of the model and all options."""
        known = json.dumps({"job": job, "bytes": self._bytes(), **asdict(self)}, sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def _bytes(self) -> int | None:
        """Return the size of the file, or of a folder's files; None for an address, or where there is nothing."""
        path = Path(self.source)
        try:
            if path.is_dir():
                return sum(each.stat().st_size for each in path.iterdir() if each.is_file())
            return path.stat().st_size if path.is_file() else None
        except OSError:
            return None
