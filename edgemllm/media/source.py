"""What SOURCE names: a recording, a camera or address, a folder that grows, or images on a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from edgemllm.errors import UsageError
from edgemllm.media.capture import is_live, shown
from edgemllm.media.encoded_images import EncodedImages
from edgemllm.media.feed import Feed
from edgemllm.media.frame import Frame
from edgemllm.media.growing_folder import GrowingFolder
from edgemllm.media.ticks import check_sampling
from edgemllm.media.video import Video

SILENCE_S = 10.0
"""An address that brings nothing for so long is connected again, unless --timeout says otherwise."""


@dataclass
class Source:
    """A source and how it is to be watched."""

    source: str
    fps: float = 1.0
    start: float = 0.0
    end: float | None = None
    max_frames: int | None = None
    """Spread over a recording; other sources are to be stopped there by the one who watches."""
    live: bool | None = None
    """Newest frame first, by the clock; None: as the kind of source suggests."""
    retries: int = 10
    timeout: float | None = None
    queue: int = 8
    """Frames that wait for the model at most."""

    def __post_init__(self) -> None:
        if not self.source:
            raise UsageError("SOURCE is empty", "a video, an address, a folder, or - for images on standard input")
        check_sampling(self.fps, self.start, self.end, self.max_frames)
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"--timeout {self.timeout:g} waits for nothing", "a time above 0, such as 10s")
        if self.retries < -1:
            raise UsageError(f"--retries {self.retries} means nothing", "0 upwards, or -1: indefinitely")
        self.name = shown(self.source)
        self.offset = 0.0
        """Seconds by which the times in the stream are ahead of those in the source."""
        self.video: Video | None = None
        """The recording, where it is one."""
        self.folder: GrowingFolder | None = None

    def open(self, place: Mapping[str, Any] | None = None) -> Feed:
        """Begin to read; `place` is what `place` gave for an earlier run: the stream continues after it.

        Raises MissingError, MediaError and UsageError where the source cannot be watched.
        """
        place = place or {}
        same = place.get("source") == self.name
        if place:
            self.offset = place["offset"] if same else place["time"] + 1 / self.fps
        if self.source == "-":
            return self._pipe(place)
        if Path(self.source).is_dir():
            return self._folder(place if same else {})
        return self._video(place, same)

    @property
    def interval(self) -> float | None:
        """Return the seconds between two frames, where the source keeps to one."""
        return self.video.interval if self.video and not self.live else None

    def place(self, frame: Frame) -> dict[str, Any]:
        """Return where the stream is, once `frame` has been shown: for `open`."""
        return {
            "source": self.name,
            "time": frame.time,
            "index": frame.index,
            "name": frame.name,
            "offset": self.offset,
            "start": self.start,
        }

    def _pipe(self, place: Mapping[str, Any]) -> Feed:
        if sys.stdin.isatty():
            raise UsageError(
                "SOURCE - reads JPEG or PNG images from a pipe, but standard input is a terminal", "cat *.jpg | ..."
            )
        self._refuse_start("a pipe")
        self.offset = place["time"] + 1 / self.fps if place else 0.0
        live = bool(self.live)
        reader = EncodedImages(pipe_on_stdin(), self.fps, live)
        return Feed(reader, self.queue, live, arrival=live, rate=self.fps, offset=self.offset, end=self.end)

    def _folder(self, place: Mapping[str, Any]) -> Feed:
        self._refuse_start("a folder")
        live = bool(self.live)
        self.folder = GrowingFolder(self.source, self.fps, live, self.timeout)
        if place:
            self.folder.continue_after(place["name"], place["index"])
        offset = place["time"] + 1 / self.fps if place and live else self.offset
        return Feed(self.folder, self.queue, live, arrival=live, rate=self.fps, offset=offset, end=self.end)

    def _video(self, place: Mapping[str, Any], same: bool) -> Feed:
        ahead = is_live(self.source)
        start, self.start = self.start, place["start"] if same else self.start
        if same and start and not ahead:
            raise UsageError(f"--start {start:g}: a resumed recording continues where it was", "omit --start")
        silence = (self.timeout or SILENCE_S) if ahead else self.timeout
        span = {} if ahead else {"end": self.end, "max_frames": self.max_frames}
        video = Video.open(self.source, fps=self.fps, start=self.start, timeout=silence, **span)  # type: ignore[arg-type]
        if video.live:
            self._refuse_start("a live source")
            if self.live is False:
                raise UsageError(f"--no-live: {self.name} does not wait", "omit --no-live")
            self.offset = place["time"] if place else 0.0
            return Feed(
                video,
                self.queue,
                live=True,
                arrival=True,
                retries=self.retries,
                rate=self.fps,
                offset=self.offset,
                end=self.end,
                connect=lambda: Video.open(self.source, fps=self.fps, timeout=silence),
            )
        self.video = video
        if same:
            video.continue_after(place["time"] - self.offset)
        end = self.end + self.offset if ahead and self.end else None  # an address that turned out to be a file
        if self.live:
            return Feed(video, self.queue, live=True, paced=True, rate=self.fps, offset=self.offset, end=end)
        return Feed(video, self.queue, rate=self.fps, offset=self.offset, end=end, full_batches=True)

    def _refuse_start(self, what: str) -> None:
        if self.start:
            raise UsageError(f"--start {self.start:g}: {what} begins now", "omit --start")


def pipe_on_stdin() -> BufferedReader:
    """Return standard input as a file of our own: a thread that still reads it does not hold up the end of the program."""
    return BufferedReader(FileIO(os.dup(sys.stdin.fileno())), 1 << 16)
