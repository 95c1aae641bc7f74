"""A folder that one server at a time uses."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from edgemllm.errors import UsageError, opening


def claim(folder: Path, what: str, option: str) -> IO[str]:
    """Make a folder where there is none, and hold it until the file returned is closed.

    Raises UsageError where it cannot be written to, or another server holds it.
    """
    with opening(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(f"another server keeps its {what} in {folder}", f"{option} FOLDER") from error
    return lock
