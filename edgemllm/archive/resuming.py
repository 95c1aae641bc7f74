"""What a saved session says of its archive, which lies beside it: the two are checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemllm.archive.session import ArchivedSession
from edgemllm.errors import MissingError, UsageError
from edgemllm.session import Session

CLEARED = "cleared"
"""What an archive says of those before it whose place it took when they were cleared: nothing of them is left."""


def state(session: Session) -> dict[str, Any] | None:
    """Return which archive a session keeps, how much was written to it, and where its text is; None without one."""
    if not isinstance(session, ArchivedSession):
        return None
    archive = session.archive
    return {"id": archive.identity, "path": str(archive.path), "written": archive.written(), **session.in_archive()}


def take_over(session: Session, saved: Mapping[str, Any] | None, path: Path) -> None:
    """Continue the archive of a session that was saved to `path`; one without its archive, or with a first one, may be loaded.

    Raises UsageError for another archive than that of the session, and MissingError for an older copy of it.
    """
    if saved is None or not isinstance(session, ArchivedSession):
        return
    archive = session.archive
    if saved["id"] in archive.database.about.get(CLEARED, "").split():
        return
    if archive.identity != saved["id"]:
        raise UsageError(
            f"{path} was saved with the archive {saved['path']}, and {archive.path} is another one",
            f"--archive {saved['path']}, or omit --archive",
        )
    if archive.written() < saved["written"]:
        raise MissingError(
            f"archive {archive.path} is an older copy than {path} was saved with: {archive.written():,} frames and passages "
            f"were written to it, not {saved['written']:,}",
            "the newer copy, or omit --archive",
        )
    session.continue_in_archive(saved, more=archive.written() > saved["written"])
