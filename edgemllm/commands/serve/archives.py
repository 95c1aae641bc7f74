"""Archives of a server's sessions: a file each in one folder. How the model finds things in them is tried out once."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgemllm.archive.archive import Archive
from edgemllm.archive.calibration import calibrate, finders_of
from edgemllm.archive.extent import Extent
from edgemllm.archive.resuming import CLEARED
from edgemllm.archive.session import ArchivedSession
from edgemllm.commands.serve.claim import claim
from edgemllm.errors import EdgeError, UsageError
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session

OWN = ("id", "format")
"""What an archive says of itself, and not of the model."""
ANSWER = "answer-"
"""How folders of archives begin that last as long as an answer."""


class Archives:
    """A folder of archives, each of at most `limit` bytes; `say` reports a line to whoever runs the server.

    `share`: of the KV budget, for what is looked at again. Raises UsageError where the folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int, share: float, say: Callable[[str], None]) -> None:
        self.folder, self.limit, self.share, self.say = folder, limit, share, say
        self._lock = claim(folder, "archives", "--archive")
        self._model: dict[str, str] = {}
        for left in folder.glob(f"{ANSWER}*"):  # a server was killed while it answered
            shutil.rmtree(left, ignore_errors=True)

    def calibrate(self, family: ModelFamily) -> None:
        """Learn from the folder how this model finds things, or try it out. Raises as `Archive` does."""
        with contextlib.closing(Archive(self.folder / "model.db", say=self.say)) as archive:
            try:
                finders_of(family, archive)
            except UsageError:  # an earlier server had another model
                calibrate(family, archive)
            self._model = {name: value for name, value in archive.database.about.items() if name not in OWN}

    def open(self, path: Path, say: Callable[[str], None]) -> Archive:
        """Open an archive, and begin it where there is none; `say` gets what its user has to know. Raises as `Archive` does."""
        archive = Archive(path, self.limit, say=say)
        try:
            if not self._model.keys() <= archive.database.about.keys():
                archive.database.about = self._model
        except BaseException:
            archive.close()
            raise
        return archive

    def keeping(self, archive: Archive, source: str = "") -> Callable[..., Session]:
        """Return what makes a session that keeps what it sees of `source` in an archive."""
        return functools.partial(ArchivedSession, archive=archive, share=self.share, source=source)

    @contextlib.contextmanager
    def for_an_answer(self) -> Iterator[Callable[..., Session]]:
        """Give what makes a session with an archive that is gone after its answer; without one where it cannot be begun."""
        with contextlib.ExitStack() as at_end:
            try:
                made = tempfile.TemporaryDirectory(prefix=ANSWER, dir=self.folder, ignore_cleanup_errors=True)
                path = Path(at_end.enter_context(made)) / "answer.db"
                make = self.keeping(at_end.enter_context(contextlib.closing(self.open(path, self.say))))
            except (EdgeError, OSError) as error:
                self.say(f"warning: an answer is given without an archive: {error}")
                make = Session
            yield make

    # ---- archives of sessions, by their names ------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return the file of a session's archive."""
        return self.folder / f"{name}.db"

    def latest(self, name: str) -> float:
        """Return the latest second that a session's archive holds, without claiming it; 0 where it cannot be read."""
        extent = Extent()
        with contextlib.suppress(EdgeError), contextlib.closing(Archive(self.path(name), writing=False)) as archive:
            extent.look(archive)
        return extent.end

    def clear(self, name: str, archive: Archive) -> None:
        """Put an empty archive in the place of a session's; a session that was saved with the one before may be restored."""
        cleared = f"{archive.database.about.get(CLEARED, '')} {archive.identity}"
        archive.close()
        self.remove(name)
        with contextlib.suppress(EdgeError), contextlib.closing(self.open(self.path(name), self.say)) as made:
            made.database.about = {CLEARED: cleared}

    def remove(self, name: str) -> None:
        """Remove a session's archive, which nobody uses any more; none is no error."""
        for ending in ("", "-wal", "-shm"):
            self.path(name).with_name(f"{name}.db{ending}").unlink(missing_ok=True)
