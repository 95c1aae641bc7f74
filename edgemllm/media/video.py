"""Frames of videos, cameras, images and folders of images, sampled by time stamp, in constant memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from edgemllm.errors import MediaError, MissingError, UsageError, opening
from edgemllm.media.capture import connect, is_live, shown
from edgemllm.media.frame import Frame
from edgemllm.media.images import images_in, is_image, read_image
from edgemllm.media.ticks import EARLY_S, Ticks, check_sampling
from edgemllm.units import clock

SEEK_MARGIN_S = 1.0
"""Seeking aims this much before `start`, so that the frames around it are read in order."""
SHORTFALL_S = 1.5
"""A file may end this much before what its header says (a missing last frame) without being called damaged."""


class Video:
    """Iterate once for the sampled frames; use as a context manager to close the file."""

    def __init__(
        self,
        source: str,
        fps: float | None,
        start: float,
        end: float | None,
        max_frames: int | None,
        timeout: float | None = None,
    ) -> None:
        check_sampling(fps, start, end, max_frames)
        self.source, self.path = source, shown(source)
        self.start, self.end, self.max_frames = start, end, max_frames
        self.frames_total: int | None = None
        self.seconds: float | None = None
        self.width = self.height = 0
        self.native_fps = 25.0
        self.doubted = 0.0
        """A frame rate that the header gives and no camera has."""
        self.frames_seen = self.frames_decoded = self.damaged = 0
        """Frames delivered and decoded, and files of a folder that are no image: skipped."""
        self.shortfall: str | None = None
        """Set at the end where less could be decoded than the header promises."""
        self.live = False
        self._stopped = False
        self._timeout = timeout
        self._capture: Any = None
        self._images: list[Path] = []
        with opening(self.path, MediaError):
            self._open(fps)
        self._check_span()
        self.interval = 1 / fps if fps else 0.0
        """Seconds between samples; 0: every frame."""
        self.spread = False
        """`max_frames` has widened the interval."""
        count = self._count()
        if max_frames is not None and count is not None and count > max_frames and self.span is not None:
            self.interval, self.spread = self.span / max_frames, True
        self._ticks = Ticks(start, self.interval)
        self._from = start

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        fps: float | None = 1.0,
        start: float = 0.0,
        end: float | None = None,
        max_frames: int | None = None,
        timeout: float | None = None,
    ) -> Video:
        """Open a file, folder of images, camera or stream.

        `fps` frames a second are delivered, chosen by time stamp (None: every frame), from `start` to `end` seconds;
        `max_frames` spreads evenly over that span where its length is known, and stops there where not. An address that
        says nothing for `timeout` seconds counts as lost. Raises MissingError, MediaError, and UsageError for a span
        outside the video.
        """
        return cls(os.fspath(source), fps, start, end, max_frames, timeout)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or camera."""
        if self._capture is not None:
            self._capture.release()

    def stop(self) -> None:
        """End the iteration at the next frame that is decoded, wanted or not; another thread may call this."""
        self._stopped = True

    def continue_after(self, seconds: float) -> None:
        """Deliver only what comes after `seconds`, as if there had been no break."""
        self._ticks.continue_after(seconds)
        self._from = max(self.start, seconds)

    @property
    def span(self) -> float | None:
        """Return the seconds between `start` and the end that applies, where the length is known."""
        return None if self.seconds is None else min(self.end or math.inf, self.seconds) - self.start

    @property
    def expected(self) -> int | None:
        """Return how many frames will be delivered, where that can be known; at uneven frame rates there may be fewer."""
        count = self._count()
        return count if count is None or self.max_frames is None else min(count, self.max_frames)

    def describe(self) -> str:
        """Return a line such as "600 frames sampled from 36000 (00:10:00 at 60 fps, 1 frame a second)"."""
        noun, count = "image" if self._images else "frame", self.frames_seen or self.expected or 0
        if self.interval and not self.spread:
            per_second = 1 / self.interval
            rate = f"{per_second:.4g} frame{'' if per_second == 1 else 's'} a second"
        else:
            rate = f"one every {self.interval:.3g} s" if self.interval else f"every {noun}"
        limit = f", spread evenly by --max-frames {self.max_frames}" if self.spread else ""
        if self.max_frames and not self.spread and self.frames_seen >= self.max_frames and self.seconds is None:
            limit = f", stopped by --max-frames {self.max_frames}"
        at = f" at {self.native_fps:.4g} fps" if not self.doubted else f", not the {self.doubted:.4g} fps of its header"
        length = "" if self.seconds is None else f"{clock(self.seconds)}{at}, "
        total = "" if self.frames_total is None else f" from {self.frames_total}"
        return f"{count} {noun}{'' if count == 1 else 's'} sampled{total} ({length}{rate}{limit})"

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._from_images() if self._images else self._from_capture():
            self.frames_seen += 1
            yield frame
            if self.max_frames is not None and self.frames_seen >= self.max_frames:
                return
        if self._stopped:
            return
        if not self.frames_seen and self.shortfall:
            raise MediaError(f"{self.path}: {self.shortfall}", "fetch it again, or choose an earlier --start")
        if not self.frames_seen and not self.live and self._from == self.start:
            raise UsageError(
                f"{self.path} has no frame from {self.start:g} s on" + (f" before {self.end:g} s" if self.end else ""),
                "choose an earlier --start or a later --end",
            )

    # ---- opening -----------------------------------------------------------------------------------------------

    def _open(self, fps: float | None) -> None:
        path = Path(self.source)
        if path.is_dir():
            self._images = images_in(path)
            self.frames_total, self.native_fps = len(self._images), fps or 1.0
            self.seconds = self.frames_total / self.native_fps
        elif not is_live(self.source) and not path.exists():
            raise MissingError(f"no video {self.path}", "give an existing file, a folder of images or a stream address")
        elif is_image(self.source):
            self._images, self.frames_total = [path], 1
        else:
            return self._open_capture()
        self.height, self.width = self._first_image().pixels.shape[:2]
        return None

    def _first_image(self) -> Frame:
        """Return the first image that can be read. Raises what is wrong with the first of all where none can."""
        problem: MediaError | None = None
        for path in self._images:
            try:
                return read_image(str(path))
            except MediaError as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def _open_capture(self) -> None:
        self._capture = connect(self.source, self._timeout)
        size = (self._capture.get(number) for number in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.width, self.height = (int(side) for side in size)
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # An address may serve a file, which has a length; a camera has none.
        self.live = is_live(self.source) and count <= 0
        if count > 0 and rate > 0:
            self.seconds = count / rate
        # Browsers' WebM claims 1000 frames a second: the length follows from it, but no number of frames does.
        if 0 < rate < 1000:
            self.native_fps, self.frames_total = rate, count if count > 0 else None
        else:
            self.doubted = rate

    def _check_span(self) -> None:
        """Refuse a span outside the video. A second too much is fine: lengths are shown in whole seconds."""
        if self.seconds is None:
            return
        for option, value, limit in (("--start", self.start, self.seconds), ("--end", self.end, self.seconds + 1)):
            if value and value >= limit:
                raise UsageError(
                    f"{option} {clock(value)} is beyond the end of {self.path}, which lasts {clock(self.seconds)}",
                    f"choose {option} up to {self.seconds:.1f}s",
                )

    # ---- reading -----------------------------------------------------------------------------------------------

    def _count(self) -> int | None:
        """Return how many frames the sampling finds, without `max_frames`."""
        if self.span is None or self.seconds is None:
            return 1 if self._images else None
        inside = None if self.frames_total is None else max(1, round(self.frames_total * self.span / self.seconds))
        if not self.interval:
            return inside
        ticks = max(1, math.floor((self.span - 1 / self.native_fps + EARLY_S) / self.interval) + 1)
        return ticks if inside is None else min(ticks, inside)

    def _is_past(self, now: float) -> bool:
        return self.end is not None and now >= self.end - EARLY_S

    def _from_images(self) -> Iterator[Frame]:
        for index, path in enumerate(self._images):
            seconds = index / self.native_fps
            if self._is_past(seconds):
                return
            if self._ticks.is_due(seconds):
                try:
                    frame = read_image(str(path), seconds, index)
                except MediaError:  # there is another one, or opening would have failed
                    self.damaged += 1
                    noun = "files are no images" if self.damaged > 1 else "file is no image"
                    self.shortfall = f"{self.damaged} {noun} that can be read: skipped"
                    continue
                self.frames_decoded += 1
                yield frame

    def _from_capture(self) -> Iterator[Frame]:
        began = time.monotonic()
        index = self._skip_to_start()
        now = (index - 1) / self.native_fps
        # FFmpeg continues after a damaged stretch when asked again.
        while self._capture.grab() or (not self.live and self._capture.grab()):
            self.frames_decoded += 1
            now = time.monotonic() - began if self.live else self._stamp(now)
            if self._stopped or self._is_past(now):
                return
            if self._ticks.is_due(now):
                ok, image = self._capture.retrieve()
                if ok:
                    yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now, index)
            index += 1
        if not self.frames_decoded:
            raise MediaError(f"{self.path} opens, but not one frame of it can be decoded", "check it with ffprobe")
        if not self.live:
            self._notice_shortfall(index, now)

    def _stamp(self, before: float) -> float:
        """Return the seconds of the frame just grabbed; some containers leave some frames, or all, without a time stamp."""
        stamp = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        return stamp if stamp > before else before + 1 / self.native_fps

    def _skip_to_start(self) -> int:
        """Return the number of the next frame: just before the first wanted where seeking proves exact, otherwise 0."""
        target = int((self._from - SEEK_MARGIN_S) * self.native_fps)
        if self.seconds is None or target <= 0:
            return 0
        wanted = target / self.native_fps
        if self._capture.set(cv2.CAP_PROP_POS_FRAMES, target) and self._capture.grab():
            exact = abs(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - wanted) < 1.5 / self.native_fps
            if exact and self._capture.set(cv2.CAP_PROP_POS_FRAMES, target):
                return target
        # A seek that failed can leave the capture without a next frame.
        self._capture.release()
        self._capture = connect(self.source, self._timeout)
        return 0

    def _notice_shortfall(self, count: int, now: float) -> None:
        """Compare what was decoded with what the header says."""
        if self.seconds is None:
            return
        missing = math.inf if self.frames_total is None else self.frames_total - count
        if self.seconds - now > SHORTFALL_S and missing > 2:
            self.shortfall = (
                f"decoding stopped at {clock(now)} of {clock(self.seconds)}: the file is damaged, incomplete or trimmed"
            )
        elif self.frames_total is not None and missing > max(2, 0.01 * self.frames_total):
            self.shortfall = f"{count} frames could be decoded of the {self.frames_total} that the header promises"
