"""Encoded images one after the other on a pipe (`ffmpeg ... -f image2pipe -`, `cat *.jpg`): JPEG and PNG."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BufferedReader, BytesIO

import cv2
import numpy as np

from edgemllm.errors import MediaError
from edgemllm.media.frame import Frame
from edgemllm.media.images import refuse_bomb
from edgemllm.media.ticks import Ticks

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
LARGEST = 64 << 20
"""Bytes of one image; more means that the pipe carries something else."""


class EncodedImages:
    """Iterate once for the frames. `fps` of them are one second; if `live`, that many are taken in a second of the clock."""

    def __init__(self, pipe: BufferedReader, fps: float, live: bool = False) -> None:
        self.pipe, self.fps, self.live, self.path = pipe, fps, live, "standard input"
        self.index = 0

    def __iter__(self) -> Iterator[Frame]:
        ticks, began = Ticks(0.0, 1 / self.fps), time.monotonic()
        while data := self._image():
            self.index += 1
            if self.live and not ticks.is_due(time.monotonic() - began):
                continue
            refuse_bomb(BytesIO(data), f"{self.path}: image {self.index}")
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise self._error(f"image {self.index} ({len(data)} bytes) cannot be decoded")
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (self.index - 1) / self.fps, self.index - 1)

    def close(self) -> None:
        """Let go of the pipe."""
        self.pipe.close()

    def _image(self) -> bytearray | None:
        """Return the bytes of the next image, None at the end of the pipe."""
        head = self.pipe.read(2)
        if not head:
            return None
        image = bytearray(head)
        if head == JPEG:
            self._jpeg(image)
        elif head == PNG[:2] and self._take(image, len(PNG) - 2) == PNG[2:]:
            self._png(image)
        else:
            raise self._error(f"neither JPEG nor PNG where image {self.index + 1} should begin ({bytes(image[:8])!r})")
        return image

    def _png(self, image: bytearray) -> None:
        """Read chunks of length, kind, data and checksum, up to IEND."""
        kind = b""
        while kind != b"IEND":
            length, kind = int.from_bytes(self._take(image, 4), "big"), self._take(image, 4)
            self._take(image, length + 4)

    def _jpeg(self, image: bytearray) -> None:
        """Read segments with their length, and coded data in which 0xFF is followed by 0 or a restart marker, up to EOI."""
        while (marker := self._marker(image)) != 0xD9:
            if not 0xD0 <= marker <= 0xD7 and marker not in (0x00, 0x01):
                self._take(image, int.from_bytes(self._take(image, 2), "big") - 2)

    def _marker(self, image: bytearray) -> int:
        """Return the byte after the next 0xFF, skipping coded data and fill bytes."""
        while (place := (ahead := self.pipe.peek(1)).find(b"\xff")) < 0:
            self._take(image, max(1, len(ahead)))
        self._take(image, place + 1)
        while (byte := self._take(image, 1)) == b"\xff":
            pass
        return byte[0]

    def _take(self, image: bytearray, count: int) -> bytes:
        if count < 0 or len(image) + count > LARGEST:
            raise self._error(f"image {self.index + 1} is damaged or larger than {LARGEST >> 20} MiB")
        data = self.pipe.read(count)
        if len(data) < count:
            raise self._error(f"the pipe ended within image {self.index + 1}, after {len(image) + len(data)} bytes")
        image += data
        return data

    def _error(self, what: str) -> MediaError:
        return MediaError(f"{self.path}: {what}", "pipe JPEG or PNG files, such as `ffmpeg -i ... -f image2pipe -c:v mjpeg -`")
