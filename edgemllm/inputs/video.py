"""Frames of videos, cameras, images and folders of images, sampled by time stamp, in constant memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgemllm.errors import MediaError, MissingError, UsageError
from edgemllm.inputs.clock import clock

# Read by OpenCV and FFmpeg when they load; the user's own setting wins.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
SHORTFALL_S = 1.5
"""A file may end this much earlier than its header says (rounding, a missing last frame) without being called damaged."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: pixels (H, W, 3) uint8 RGB, seconds from the start of the video, number in the source."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    time: float
    index: int


def is_image(source: str) -> bool:
    """Whether a path names a still image."""
    return Path(source).suffix.lower() in IMAGES


def is_live(source: str) -> bool:
    """Whether a source has no end: a camera, a network stream or a GStreamer pipeline."""
    return source.startswith("/dev/video") or "://" in source or " ! " in source


def shown(source: str) -> str:
    """The source without the password it may carry."""
    return re.sub(r"(://[^/@\s:]*):[^@/\s]*@", r"\1:***@", source)


def read_image(path: str, seconds: float = 0.0, index: int = 0) -> Frame:
    """One image file, turned as its EXIF orientation says. Raises MissingError and MediaError."""
    if not Path(path).is_file():
        raise MissingError(f"no image {path}")
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise MediaError(f"{path} is not an image that OpenCV can read ({data.size} bytes)", "jpg, png, bmp and webp work")
    return Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), seconds, index)


class Video:
    """Iterate for the sampled frames; use as a context manager to close the file."""

    def __init__(self, source: str, fps: float | None, start: float, end: float | None, max_frames: int | None) -> None:
        if fps is not None and not fps > 0:
            raise UsageError(f"--fps {fps:g} is no frame rate", "a number above 0, such as --fps 1")
        if end is not None and end <= start:
            raise UsageError(f"--end {clock(end)} is not after --start {clock(start)}")
        if max_frames is not None and max_frames < 1:
            raise UsageError(f"--max-frames {max_frames} leaves nothing to see", "a number from 1 upwards")
        self.source, self.path = source, shown(source)
        self.start, self.end, self.max_frames = start, end, max_frames
        self.frames_total: int | None = None
        self.seconds: float | None = None
        self.width = self.height = 0
        self.native_fps = 0.0
        self.frames_seen = self.frames_decoded = 0
        self.shortfall: str | None = None
        self._capture: Any = None
        self._images: list[Path] = []
        self._open(fps)
        if self.seconds is not None and start >= self.seconds:
            raise UsageError(f"--start {clock(start)} is beyond the end of {self.path} ({clock(self.seconds)})")
        self.interval = 1 / fps if fps else 0.0
        """Seconds between samples; 0: every frame."""
        self.spread = False
        """`max_frames` has widened the interval."""
        self._spread(max_frames)

    @classmethod
    def open(
        cls,
        source: str,
        *,
        fps: float | None = 1.0,
        start: float = 0.0,
        end: float | None = None,
        max_frames: int | None = None,
    ) -> Video:
        """Open a file, folder of images, camera or stream.

        `fps` frames a second are delivered, chosen by time stamp (None: every frame), between `start` and `end` seconds;
        `max_frames` spreads evenly over that span where its length is known, and stops there where not. Raises
        MissingError, MediaError, and UsageError for a span outside the video.
        """
        return cls(source, fps, start, end, max_frames)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or camera."""
        if self._capture is not None:
            self._capture.release()

    @property
    def span(self) -> float | None:
        """Seconds between `start` and the end that applies."""
        if self.seconds is None and self.end is None:
            return None
        return min(self.end or float("inf"), self.seconds or float("inf")) - self.start

    @property
    def expected(self) -> int | None:
        """How many frames will be delivered, where that can be known."""
        if self.span is None or self.frames_total is None:
            return None
        if not self.interval:
            count = max(1, round(self.frames_total * self.span / self.seconds)) if self.seconds else self.frames_total
        else:
            count = min(self.frames_total, max(1, -int(-(self.span - 1e-3) // self.interval)))
        return min(count, self.max_frames or count)

    def describe(self) -> str:
        """Such as "600 frames sampled from 36000 (00:10:00 at 60 fps, 1 frame a second)"."""
        total = f" of {self.frames_total}" if self.frames_total is not None else ""
        rate = f"one every {self.interval:.3g} s" if self.interval else "every frame"
        spread = f", spread evenly by --max-frames {self.max_frames}" if self.spread else ""
        length = f"{clock(self.seconds)} at {self.native_fps:.4g} fps, " if self.seconds is not None else ""
        return f"{self.frames_seen} frames sampled{total} ({length}{rate}{spread})"

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._from_images() if self._images else self._from_capture():
            self.frames_seen += 1
            yield frame
            if self.max_frames is not None and self.frames_seen >= self.max_frames:
                return

    # ---- opening -----------------------------------------------------------------------------------------------

    def _open(self, fps: float | None) -> None:
        path = Path(self.source)
        if path.is_dir():
            return self._open_folder(path, fps)
        if is_live(self.source):
            return self._open_capture(live=True)
        if not path.exists():
            raise MissingError(f"no video {self.path}", "give an existing file, a folder of images or a stream address")
        if is_image(self.source):
            self._images = [path]
            self.frames_total, self.seconds, self.native_fps = 1, None, 0.0
            return None
        return self._open_capture(live=False)

    def _open_folder(self, folder: Path, fps: float | None) -> None:
        def natural(path: Path) -> list[tuple[int, int | str]]:
            return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name.lower())]

        self._images = sorted((file for file in folder.iterdir() if is_image(str(file))), key=natural)
        if not self._images:
            raise MissingError(f"folder {self.path} has no images", f"put {', '.join(sorted(IMAGES))} files into it")
        self.frames_total = len(self._images)
        self.native_fps = fps or 1.0
        self.seconds = self.frames_total / self.native_fps

    def _open_capture(self, live: bool) -> None:
        source: Any = int(self.source[10:]) if re.fullmatch(r"/dev/video\d+", self.source) else self.source
        backend = cv2.CAP_GSTREAMER if " ! " in self.source else cv2.CAP_ANY
        self._capture = cv2.VideoCapture(source, backend)
        if not self._capture.isOpened():
            size = "" if live else f" ({Path(self.source).stat().st_size} bytes)"
            raise MediaError(
                f"{self.path} cannot be opened as video{size}: not a video, or incomplete (an mp4 cut short has no index)",
                "check it with ffprobe, or fetch it again",
            )
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        self.width, self.height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.native_fps = rate if 0 < rate < 1000 else 25.0
        if not live and count > 0:
            self.frames_total, self.seconds = count, count / self.native_fps

    def _spread(self, max_frames: int | None) -> None:
        expected = self.expected
        if max_frames is None or self.span is None:
            return
        self.max_frames = None
        unlimited = self.expected
        self.max_frames = max_frames
        if unlimited is not None and expected is not None and unlimited > max_frames:
            self.interval, self.spread = self.span / max_frames, True

    # ---- reading -----------------------------------------------------------------------------------------------

    def _from_images(self) -> Iterator[Frame]:
        due = self.start
        for index, path in enumerate(self._images):
            seconds = index / self.native_fps if self.native_fps else 0.0
            if self.end is not None and seconds >= self.end:
                return
            if seconds + 1e-6 >= due:
                self.frames_decoded += 1
                yield read_image(str(path), seconds, index)
                due = max(due + self.interval, seconds)

    def _from_capture(self) -> Iterator[Frame]:
        live = self.seconds is None
        began = time.monotonic()
        due, index, now = self.start, -1, 0.0
        first = self._seek() if self.start and not live else 0
        index += first
        while self._capture.grab():
            index += 1
            now = time.monotonic() - began if live else self._stamp(index)
            if self.end is not None and now >= self.end:
                return
            if now + 1e-3 < due:
                continue
            ok, image = self._capture.retrieve()
            if not ok:
                continue
            self.frames_decoded += 1
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now, index)
            # Ticks that passed while no frame came are skipped, never filled by repeating one.
            due += self.interval * max(1, int((now - due) / self.interval + 1e-3) + (now > due)) if self.interval else 0.0
        if index < 0 or self.frames_decoded == 0:
            raise MediaError(f"{self.path} opens but not one frame of it can be decoded", "check it with ffprobe")
        if not live:
            self._notice_shortfall(index, now)

    def _stamp(self, index: int) -> float:
        """Seconds of the frame just grabbed; some containers have no time stamps but a frame rate."""
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return stamp if stamp > 0 or index == 0 else index / self.native_fps

    def _seek(self) -> int:
        """Go to a key frame before `start`, if the container can tell where it went; returns the next frame's number."""
        target = max(0, int((self.start - 2) * self.native_fps))
        if target and self._capture.set(cv2.CAP_PROP_POS_FRAMES, target):
            reached = int(self._capture.get(cv2.CAP_PROP_POS_FRAMES))
            if abs(reached - target) <= 1:
                return reached
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        return 0

    def _notice_shortfall(self, index: int, now: float) -> None:
        assert self.seconds is not None
        assert self.frames_total is not None
        missing = self.frames_total - (index + 1)
        if self.seconds - now > SHORTFALL_S and missing > 0.01 * self.frames_total:
            self.shortfall = (
                f"decoding stopped at {clock(now)} of {clock(self.seconds)}: {self.path} is damaged or incomplete "
                f"({missing} of {self.frames_total} frames missing)"
            )
