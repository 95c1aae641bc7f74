"""A folder of images that grows: what is there, in order, then what comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgemllm.errors import MediaError, MissingError
from edgemllm.media.frame import Frame
from edgemllm.media.images import is_image, natural, read_image
from edgemllm.media.ticks import Ticks

POLL_S = 0.2
SETTLED_S = 2.0
"""An image that cannot be read is tried again until nobody has written to it for so long; a listing is repeated for as long."""


class GrowingFolder:
    """Iterate once for the frames, `fps` of them a second of video; if `live`, that many in a second of the clock.

    Files are taken in natural order (frame_2 before frame_10), each once; it ends when none came for `timeout` seconds.
    Remembers one name, however many files the folder holds.
    """

    def __init__(self, path: str, fps: float, live: bool = False, timeout: float | None = None) -> None:
        self.folder, self.fps, self.live, self.timeout, self.path = Path(path), fps, live, timeout, path
        self.last, self.index = "", -1
        """Name and number of the latest image taken."""
        self.late = self.damaged = 0
        """Files that came with a name before one already taken, and files that are no image: not watched."""
        self._looked = time.time()
        self._waiting = True
        self._stopped = threading.Event()
        if not self.folder.is_dir():
            raise MissingError(f"no folder {path}", "give a folder that is there, even if it is still empty")

    def stop(self) -> None:
        """End the iteration; another thread may call this."""
        self._stopped.set()

    def continue_after(self, name: str, index: int) -> None:
        """Take only what comes after a file already taken."""
        self.last, self.index = name, index

    def __iter__(self) -> Iterator[Frame]:
        ticks = Ticks(0.0, 1 / self.fps)
        began = came = time.monotonic()
        while not self._stopped.is_set() and (self.timeout is None or time.monotonic() - came < self.timeout):
            for frame in self._fresh():
                came = time.monotonic()
                if not self.live or ticks.is_due(came - began):
                    yield frame
            self._stopped.wait(POLL_S)

    def _fresh(self) -> Iterator[Frame]:
        """Return the images after the latest one, up to the first that is still being written."""
        for path in self._listing():
            try:
                frame = read_image(str(path), (self.index + 1) / self.fps, self.index + 1, path.name)
                self.last, self.index = path.name, self.index + 1
                yield frame
            except MissingError:
                continue  # whoever writes them also deletes old ones
            except MediaError:
                if self._age(path) < SETTLED_S:
                    self._waiting = True
                    return
                self.last, self.damaged = path.name, self.damaged + 1

    def _listing(self) -> list[Path]:
        now, before = time.time(), self._looked
        try:
            if not self._waiting and self.folder.stat().st_mtime < before - SETTLED_S:
                return []
            found = [file for file in self.folder.iterdir() if is_image(file.name) and not file.name.startswith(".")]
        except OSError as error:
            raise MediaError(
                f"{self.path} cannot be read any more: {error.strerror}", "mount it again, and --resume"
            ) from error
        self._looked, self._waiting = now, False
        latest = natural(Path(self.last))
        fresh = [file for file in found if not self.last or natural(file) > latest]
        self.late += sum(1 for file in found if self.last and natural(file) < latest and self._age(file) < now - before)
        return sorted(fresh, key=natural)

    def _age(self, path: Path) -> float:
        """Return the seconds since the file was written or moved here."""
        try:
            return time.time() - path.stat().st_ctime
        except OSError:
            return float("inf")
