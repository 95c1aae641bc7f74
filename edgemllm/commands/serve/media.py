"""Pictures and videos that a request names: fetched within limits, and nothing opened that was not allowed."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from edgemllm.commands.serve.fetch import fetch
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.schema import VideoLink
from edgemllm.media.frame import Frame
from edgemllm.media.images import decode_image, read_image, refuse_bomb
from edgemllm.media.video import Video

PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF....WEBP", re.DOTALL)
CONTAINER = re.compile(rb"....(ftyp|moov|mdat)|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)
"""How mp4 and mov, Matroska and WebM, and AVI begin, which name no other file or address, as playlists do for FFmpeg."""


@dataclass(frozen=True)
class Limits:
    """What a request may name, and how large it may be."""

    media_path: Path | None
    """The folder below which `file://` may read."""
    private: bool
    """Whether addresses of the own network may be fetched."""
    most_bytes: int
    most_pixels: int
    fps: float
    max_frames: int | None


@dataclass(frozen=True)
class Picture:
    """A picture that was checked, and is decoded when its turn comes: one at a time, however many a request has."""

    source: BytesIO | Path

    def open(self) -> Frame:
        """Decode it. Raises MediaError."""
        return decode_image(self.source, "the picture") if isinstance(self.source, BytesIO) else read_image(str(self.source))


@dataclass(frozen=True)
class Clip:
    """A video that was checked, and is opened when its turn comes."""

    path: Path
    sampling: dict[str, Any]

    def open(self) -> Video:
        """Open it."""
        return Video.open(self.path, **self.sampling)


class Media:
    """Opens what requests name."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def picture(self, url: str) -> Picture:
        """Return the picture at an address. Raises Refusal and MediaError."""
        if url.startswith("file:"):
            path = self.file(url)
            with path.open("rb") as file:
                self._check_picture(file)
            return Picture(path)
        return self.sent(self.content(url))

    def sent(self, content: bytes) -> Picture:
        """Return a picture that was sent. Raises Refusal and MediaError."""
        file = BytesIO(content)
        self._check_picture(file)
        return Picture(file)

    def _check_picture(self, file: BinaryIO) -> None:
        if not PICTURE.match(file.read(16)):
            raise Refusal(400, "the picture has no format that is known", "JPEG, PNG, WebP, GIF or BMP", code="invalid_image")
        file.seek(0)
        refuse_bomb(file, "the picture", self.limits.most_pixels)
        file.seek(0)

    def video(self, link: VideoLink, folder: Path) -> Clip:
        """Return a video that can be opened, kept in `folder` if it was sent or fetched. Raises Refusal and EdgeErrors."""
        limits = self.limits
        sampling = {"fps": link.fps or limits.fps, "max_frames": link.max_frames or limits.max_frames}
        if link.url is not None and link.url.startswith("file:"):
            clip = Clip(self.file(link.url), sampling)
        else:
            content = self.content(link.url) if link.url else self._base64(link.data or "")
            if not CONTAINER.match(content):
                raise Refusal(400, "the video has no format that is known", "mp4, mov, mkv, webm or avi", code="invalid_video")
            path = folder / f"{len(list(folder.iterdir()))}.video"
            path.write_bytes(content)
            clip = Clip(path, sampling)
        self._check(clip)
        return clip

    def content(self, url: str) -> bytes:
        """Return what a data: or http(s) address holds. Raises Refusal and MediaError."""
        scheme, _, rest = url.partition(":")
        if scheme == "data":
            kind, comma, data = rest.partition(",")
            if not comma or not kind.endswith(";base64"):
                raise Refusal(400, "a data: address without ;base64,", "data:image/png;base64,...", code="invalid_url")
            return self._base64(data)
        if scheme in ("http", "https"):
            return fetch(url, self.limits.most_bytes, self.limits.private)
        raise Refusal(
            400, f"addresses that begin with {scheme[:20]!r} are not opened", "data:, http:// or https://", "invalid_url"
        )

    def file(self, url: str) -> Path:
        """Return the file of a file:// address. Raises Refusal for one outside of the media folder."""
        allowed, parts = self.limits.media_path, urlsplit(url)
        if allowed is None:
            raise Refusal(403, "file:// is not served here", "edgemllm serve --media-path FOLDER", code="file_not_allowed")
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            inside = path.is_relative_to(allowed.resolve()) and parts.netloc in ("", "localhost")
        except (OSError, ValueError, RuntimeError):  # not there, a null byte, a circle of links
            path, inside = Path(), False
        if not inside or not path.is_file():  # one answer for both: what lies elsewhere is nobody's business
            raise Refusal(403, "no such file below the media folder", code="file_not_allowed")
        return path

    def _base64(self, text: str) -> bytes:
        if len(text) * 3 // 4 > self.limits.most_bytes:
            raise Refusal(413, f"media of more than {self.limits.most_bytes:,} bytes", code="media_too_large")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, "the media are not base64", code="invalid_url") from None

    def _check(self, clip: Clip) -> None:
        with clip.open() as video:
            pixels = video.width * video.height
        if pixels > self.limits.most_pixels:
            raise Refusal(400, f"frames of {pixels:,} pixels, more than {self.limits.most_pixels:,}", code="media_too_large")
