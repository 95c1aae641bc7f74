"""The file of a batch: a line as each work is done, continued after whatever ended the run, never mixed with another job's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from edgemllm.batch.job import hashed
from edgemllm.batch.work import Work
from edgemllm.errors import EdgeError, MissingError, UsageError, opening, shortened


class AnswersFile:
    """Lines in `path`, and what they were computed with in `path`.job, which also keeps a second run out.

    Use it as a context manager.
    Raises UsageError for a file that is there and is not to be resumed, or is being written; MissingError for a folder that
    is not there; EdgeError where nothing can be written. Nothing is written before `begin`.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self._job = path, path.with_name(f"{path.name}.job")
        with opening(path, UsageError):
            if path.is_dir():
                raise UsageError(f"-o {path} is a folder", f"-o {path / 'answers.jsonl'}")
            if path.exists() and not path.is_file():
                raise UsageError(f"-o {path} is a device, pipe or socket", "without -o, lines go to standard output")
            if not path.parent.is_dir():
                raise MissingError(f"no folder {path.parent} for the answers", f"mkdir -p {path.parent}")
            if not resume and path.exists() and path.stat().st_size:
                raise UsageError(f"{path} exists already", "--resume to continue it, or another file name")
        self._lock = self._claim()
        self._file: IO[str] | None = None
        self.before: dict[str, Any] = self._read_job() if resume else {}
        """The identity of the job that the file belongs to; empty where there is none."""

    def begin(self, identity: Mapping[str, Any], works: Sequence[Work]) -> list[Work]:
        """Return the works that are still to be done, and open the file for them.

        Lines of failures, and one that was cut off, leave the file: they are computed again. Raises UsageError where the
        file is of another job, or holds other questions or another video under the id of a work.
        """
        self._check(identity)
        self._hash, by_id = hashed(identity), {work.id: work for work in works}
        lines, torn = self._lines()
        kept = {line["id"]: line for line in lines if line["error"] is None}
        for name in kept.keys() & by_id.keys():
            if kept[name]["fingerprint"] != by_id[name].fingerprint(self._hash):
                raise UsageError(
                    f"{self.path} has {shortened(name)} with other questions, or of another video, than this run",
                    "the same ones as then, or another -o",
                )
        with self._writing():
            self._lock.seek(0)
            self._lock.truncate()
            json.dump(identity, self._lock)
            self._lock.flush()
            if torn or len(kept) < len(lines):
                beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
                beside.write_text("".join(json.dumps(line) + "\n" for line in kept.values()))
                os.replace(beside, self.path)
            self._file = open(self.path, "a", encoding="utf-8")
        return [work for work in works if work.id not in kept]

    def write(self, line: Mapping[str, Any], work: Work) -> None:
        """Write the line of a work, to the disk. Raises EdgeError where that fails; earlier lines stay."""
        assert self._file is not None
        with self._writing():
            self._file.write(json.dumps({**line, "fingerprint": work.fingerprint(self._hash)}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines that are there."""
        return self._lines()[0]

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Let another run have the file."""
        if self._file is None and not self.before:  # nothing came of it
            self._job.unlink(missing_ok=True)
        for file in (self._file, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):  # what could not be written was reported
                    file.close()

    def _claim(self) -> IO[str]:
        """Return the file beside the answers, open and locked as long as this run lives."""
        with self._writing():
            file = open(self._job, "a+", encoding="utf-8")
            if self.path.exists():
                open(self.path, "a").close()
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise UsageError(f"another run is writing {self.path}", "wait for it, or another -o") from None
        return file

    def _read_job(self) -> dict[str, Any]:
        self._lock.seek(0)
        with contextlib.suppress(json.JSONDecodeError):
            found = json.load(self._lock)
            if isinstance(found, dict):
                return found
        return {}

    def _check(self, identity: Mapping[str, Any]) -> None:
        """Raise UsageError where what the file was computed with differs from what this run computes with."""
        here = json.loads(json.dumps(identity))
        for key in here if self.before else ():
            theirs, mine = self.before.get(key), here[key]
            if theirs == mine:
                continue
            what = f"{key.replace('_', ' ')} {theirs}, this run has {mine}"
            if key == "weights":
                what = "another model than that of this run"
            elif isinstance(theirs, dict):
                names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
                then, now = (", ".join(f"{name.replace('_', '-')} {of.get(name)}" for name in names) for of in (theirs, mine))
                what = f"{then}, this run has {now}"
            raise UsageError(f"{self.path} was written with {what}", "the same options as then, or another -o")

    def _lines(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the lines that are there, and whether the file ends in the middle of one."""
        found: list[dict[str, Any]] = []
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, written in enumerate(text.splitlines(keepends=True), 1):
            if not written.endswith("\n"):  # the run was killed while it wrote
                return found, True
            try:
                line = json.loads(written)
                known = isinstance(line, dict) and {"id", "error", "fingerprint"} <= set(line)
            except json.JSONDecodeError:
                known = False
            if not known:
                raise UsageError(f"{self.path}, line {number}, was not written by edgemllm batch", "another -o")
            found.append(line)
        return found, False

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise EdgeError(
                f"cannot write {self.path}: {reason}", "make room, or choose another -o; lines that are there stay"
            ) from error
