"""Frames as JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from edgemllm.media.frame import Frame, Pixels

PIXELS = 640 * 480
"""Larger frames are kept smaller: what most towers look at, 20 to 40 KB."""

QUALITY = 85


def encoded(pixels: Pixels) -> bytes:
    """Return a frame as JPEG, of at most PIXELS."""
    height, width = pixels.shape[:2]
    scale = (PIXELS / (height * width)) ** 0.5
    if scale < 1:
        pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return bytes(data)


def decoded(jpeg: bytes, seconds: float) -> Frame | None:
    """Return a kept frame; None where its JPEG is damaged."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    return None if image is None else Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), seconds, 0)
