"""Frames of videos, cameras, images and folders of images, sampled by time stamp, in constant memory."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from edgemllm.errors import MediaError, MissingError, UsageError
from edgemllm.inputs.clock import clock

# Read by OpenCV and FFmpeg when they load; the user's own setting wins.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
EARLY_S = 1e-3
"""Containers round time stamps to milliseconds: a frame this much before its tick belongs to it."""
SEEK_MARGIN_S = 1.0
"""Seeking aims this much before `start`, so that the frames around it are read in order."""
SHORTFALL_S = 1.5
"""A file may end this much before what its header says (a missing last frame) without being called damaged."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    """(H, W, 3) RGB, the right way up."""
    time: float
    """Seconds from the start of the video."""
    index: int
    """Frame number in the source."""


def is_image(source: str) -> bool:
    """Whether a path names a still image."""
    return Path(source).suffix.lower() in IMAGES


def is_live(source: str) -> bool:
    """Whether a source is a camera, an address or a GStreamer pipeline instead of a path."""
    return re.fullmatch(r"/dev/video\d+", source) is not None or "://" in source or " ! " in source


def shown(source: str) -> str:
    """The source without the passwords it may carry."""
    source = re.sub(r"(://[^\s:@/]*):\S*@", r"\1:***@", source)
    return re.sub(r"((?:user-pw|passw(?:or)?d|pwd|token)=)[^&\s]+", r"\1***", source, flags=re.IGNORECASE)


def read_image(path: str, seconds: float = 0.0, index: int = 0) -> Frame:
    """One image file, turned as its EXIF orientation says. Raises MissingError and MediaError."""
    if not Path(path).is_file():
        raise MissingError(f"no image {path}", "give an existing jpg, png, bmp or webp file")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                # Transparency lies on white, as in transformers.
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return Frame(np.array(upright.convert("RGB")), seconds, index)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        size = Path(path).stat().st_size
        raise MediaError(f"{path} cannot be read as an image ({size} bytes): {error}", "save it again as jpg") from error


class Video:
    """Iterate once for the sampled frames; use as a context manager to close the file."""

    def __init__(self, source: str, fps: float | None, start: float, end: float | None, max_frames: int | None) -> None:
        check_sampling(fps, start, end, max_frames)
        self.source, self.path = source, shown(source)
        self.start, self.end, self.max_frames = start, end, max_frames
        self.frames_total: int | None = None
        self.seconds: float | None = None
        self.width = self.height = 0
        self.native_fps = 25.0
        self.frames_seen = self.frames_decoded = 0
        self.shortfall: str | None = None
        """Set at the end where less could be decoded than the header promises."""
        self.live = False
        self._capture: Any = None
        self._images: list[Path] = []
        self._tick = 0
        self._open(fps)
        self._check_span()
        self.interval = 1 / fps if fps else 0.0
        """Seconds between samples; 0: every frame."""
        self.spread = False
        """`max_frames` has widened the interval."""
        count = self._count()
        if max_frames is not None and count is not None and count > max_frames and self.span is not None:
            self.interval, self.spread = self.span / max_frames, True

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

        `fps` frames a second are delivered, chosen by time stamp (None: every frame), from `start` to `end` seconds;
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
        """Seconds between `start` and the end that applies, where the length is known."""
        return None if self.seconds is None else min(self.end or math.inf, self.seconds) - self.start

    @property
    def expected(self) -> int | None:
        """How many frames will be delivered, where that can be known; at uneven frame rates there may be fewer."""
        count = self._count()
        return count if count is None or self.max_frames is None else min(count, self.max_frames)

    def describe(self) -> str:
        """Such as "600 frames sampled from 36000 (00:10:00 at 60 fps, 1 frame a second)"."""
        noun, count = "image" if self._images else "frame", self.frames_seen or self.expected or 0
        if self.interval and not self.spread:
            per_second = 1 / self.interval
            rate = f"{per_second:.4g} frame{'' if per_second == 1 else 's'} a second"
        else:
            rate = f"one every {self.interval:.3g} s" if self.interval else f"every {noun}"
        limit = f", spread evenly by --max-frames {self.max_frames}" if self.spread else ""
        if self.max_frames and not self.spread and self.frames_seen >= self.max_frames and self.seconds is None:
            limit = f", stopped by --max-frames {self.max_frames}"
        length = "" if self.seconds is None else f"{clock(self.seconds)} at {self.native_fps:.4g} fps, "
        total = "" if self.frames_total is None else f" from {self.frames_total}"
        return f"{count} {noun}{'' if count == 1 else 's'} sampled{total} ({length}{rate}{limit})"

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._from_images() if self._images else self._from_capture():
            self.frames_seen += 1
            yield frame
            if self.max_frames is not None and self.frames_seen >= self.max_frames:
                return
        if not self.frames_seen and self.shortfall:
            raise MediaError(f"{self.path}: {self.shortfall}", "fetch it again, or choose an earlier --start")
        if not self.frames_seen and not self.live:
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
        self.height, self.width = read_image(str(self._images[0])).pixels.shape[:2]
        return None

    def _open_capture(self) -> None:
        self._capture = self._connect()
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

    def _connect(self) -> Any:
        if not is_live(self.source):
            refuse_text(Path(self.source))
        source: Any = int(self.source[10:]) if re.fullmatch(r"/dev/video\d+", self.source) else self.source
        capture = cv2.VideoCapture(source, cv2.CAP_GSTREAMER if " ! " in self.source else cv2.CAP_ANY)
        if not capture.isOpened():
            raise MediaError(*why_closed(self.source))
        # OpenCV 4 does not turn the picture unless asked to.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        return capture

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
        """How many frames the sampling finds, without `max_frames`."""
        if self.span is None or self.seconds is None:
            return 1 if self._images else None
        inside = None if self.frames_total is None else max(1, round(self.frames_total * self.span / self.seconds))
        if not self.interval:
            return inside
        ticks = max(1, math.floor((self.span - 1 / self.native_fps + EARLY_S) / self.interval) + 1)
        return ticks if inside is None else min(ticks, inside)

    def _is_due(self, now: float) -> bool:
        """Whether a frame is the first at or after its tick. Ticks that pass without a frame are never made up for."""
        if now < self.start - EARLY_S:
            return False
        if not self.interval:
            return True
        tick = math.floor((now - self.start + EARLY_S) / self.interval)
        due = tick >= self._tick
        self._tick = max(self._tick, tick + 1)
        return due

    def _is_past(self, now: float) -> bool:
        return self.end is not None and now >= self.end - EARLY_S

    def _from_images(self) -> Iterator[Frame]:
        for index, path in enumerate(self._images):
            seconds = index / self.native_fps
            if self._is_past(seconds):
                return
            if self._is_due(seconds):
                self.frames_decoded += 1
                yield read_image(str(path), seconds, index)

    def _from_capture(self) -> Iterator[Frame]:
        began = time.monotonic()
        index = self._skip_to_start()
        now = (index - 1) / self.native_fps
        # FFmpeg goes on behind a damaged stretch when asked again.
        while self._capture.grab() or (not self.live and self._capture.grab()):
            self.frames_decoded += 1
            now = time.monotonic() - began if self.live else self._stamp(now)
            if self._is_past(now):
                return
            if self._is_due(now):
                ok, image = self._capture.retrieve()
                if ok:
                    yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now, index)
            index += 1
        if not self.frames_decoded:
            raise MediaError(f"{self.path} opens, but not one frame of it can be decoded", "check it with ffprobe")
        if not self.live:
            self._notice_shortfall(index, now)

    def _stamp(self, before: float) -> float:
        """Seconds of the frame just grabbed; some containers leave some frames, or all, without a time stamp."""
        stamp = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        return stamp if stamp > before else before + 1 / self.native_fps

    def _skip_to_start(self) -> int:
        """Number of the next frame: a little before `start` where seeking proves exact by the time stamp, else 0."""
        target = int((self.start - SEEK_MARGIN_S) * self.native_fps)
        if self.seconds is None or target <= 0:
            return 0
        wanted = target / self.native_fps
        if self._capture.set(cv2.CAP_PROP_POS_FRAMES, target) and self._capture.grab():
            exact = abs(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - wanted) < 1.5 / self.native_fps
            if exact and self._capture.set(cv2.CAP_PROP_POS_FRAMES, target):
                return target
        # A seek that failed can leave the capture without a next frame.
        self._capture.release()
        self._capture = self._connect()
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


def check_sampling(fps: float | None, start: float, end: float | None, max_frames: int | None) -> None:
    """Refuse options that mean nothing, whatever the video."""
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"--fps {fps:g} is no frame rate", "a number above 0, such as --fps 1")
    if start < 0:
        raise UsageError(f"--start {start:g} is before the start of the video", "a time from 0 upwards, such as 1:30")
    if end is not None and end <= start:
        raise UsageError(f"--end {end:g} is not after --start {start:g}", "choose a later --end")
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"--max-frames {max_frames} leaves nothing to see", "a number from 1 upwards")


def images_in(folder: Path) -> list[Path]:
    """The images of a folder: frame_2 before frame_10, without the hidden files that macOS leaves."""

    def natural(path: Path) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", path.name.lower())
        return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name

    found = [file for file in folder.iterdir() if is_image(file.name) and not file.name.startswith(".")]
    if not found:
        raise MissingError(f"folder {folder} has no images", f"put {', '.join(sorted(IMAGES))} files into it")
    return sorted(found, key=natural)


def refuse_text(path: Path) -> None:
    """FFmpeg draws a text file as a terminal screen: refuse one, but for playlists."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error
    playlist = head.startswith((b"#EXTM3U", b"ffconcat", b"v=0"))
    if head and not playlist and not re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        raise MediaError(f"{path} is a text file, not a video", "give it with --text, or give a video")


def why_closed(source: str) -> tuple[str, str]:
    """Message and hint for a source that OpenCV did not open."""
    if " ! " in source and not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return "this OpenCV has no GStreamer (none from PyPI has)", "use the OpenCV of JetPack, or an rtsp:// address"
    if is_live(source):
        return f"{shown(source)} cannot be opened", "check the address, the password and the network; ls /dev/video*"
    path = Path(source)
    if not path.is_file():
        return f"{path} cannot be opened as video: an mp4 cannot be piped, MPEG-TS and MKV can", "give a file"
    size = path.stat().st_size
    if not size:
        return f"{path} is empty (0 bytes)", "fetch or record it again"
    with path.open("rb") as file:
        if file.read(12)[4:8] == b"ftyp":
            return (
                f"{path} ({size} bytes) has no readable index (moov): the recording or download was cut off",
                "fetch it again, or repair it with untrunc; record to mkv, which survives a cut",
            )
    return f"{path} ({size} bytes) cannot be opened as video: not a video, or damaged", "check it with ffprobe"
