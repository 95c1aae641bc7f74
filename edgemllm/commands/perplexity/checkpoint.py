"""A long run in a file: the session with its cache, the sums so far and the results already there, written atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from edgemllm import session_file
from edgemllm.commands.perplexity.run import Run
from edgemllm.errors import EdgeError, MissingError, UsageError


class Checkpoint:
    """Where and how often to write. `identity`: what has to be the same in the run that continues.

    Raises UsageError for a file that exists and is not to be resumed, or is no checkpoint, MissingError for a folder
    that does not exist.
    """

    def __init__(self, path: Path, every: int, resume: bool) -> None:
        self.path, self.every, self.resume = path, every, resume
        self.identity: dict[str, Any] = {}
        self.written = 0
        """Tokens of the current run when the file was written last, or could not be."""
        if not path.parent.is_dir():
            raise MissingError(f"no folder {path.parent} for the checkpoint", f"mkdir -p {path.parent}")
        if path.is_dir():
            raise UsageError(f"--checkpoint {path} is a folder", f"--checkpoint {path / 'run.edge'}")
        for stale in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
            if stale.suffix[1:].isdigit() and not psutil.pid_exists(int(stale.suffix[1:])):
                stale.unlink(missing_ok=True)
        if path.exists() and not resume:
            raise UsageError(f"checkpoint {path} exists already", "--resume to continue from there, or another file name")
        self.notes: dict[str, Any] | None = session_file.run_of(path) if path.exists() else None
        if self.notes is not None and not {"identity", "finished", "state"} <= set(self.notes):
            raise UsageError(f"{path} is a saved session, but no checkpoint of a perplexity run", "another file name")

    @property
    def budgets(self) -> list[int | None] | None:
        """Return the tokens per layer that each policy had: what `auto` meant when the run began."""
        return None if self.notes is None else self.notes["identity"]["kv_budget"]

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Return the results of finished runs, and the state of the one that was under way; nothing where there is no file.

        Raises UsageError where the run has other options than the one that continues.
        """
        if self.notes is None:
            return [], None
        for key, mine in self.identity.items():
            theirs = self.notes["identity"].get(key)
            if theirs != mine:
                raise UsageError(
                    f"{self.path} was written with {key.replace('_', ' ')} {theirs}, this run has {mine}",
                    "the same options as then, or another --checkpoint",
                )
        return self.notes["finished"], self.notes["state"]

    def due(self, run: Run) -> bool:
        """Return whether enough tokens were scored since the last time."""
        return run.sums.tokens - self.written >= self.every

    def write(self, run: Run, finished: Sequence[Mapping[str, Any]], state: Mapping[str, Any] | None) -> str | None:
        """Write; a failure is returned as words, leaves the file as it was, and the run continues."""
        self.written = run.sums.tokens if state is not None else 0
        notes = {"identity": self.identity, "finished": list(finished), "state": state}
        try:
            session_file.save(run.session, self.path, notes)
        except (EdgeError, OSError) as error:
            return error.message if isinstance(error, EdgeError) else f"cannot write {self.path}: {error.strerror}"
        return None
