"""Still images: one file, or a folder of them in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from edgemllm.errors import MediaError, MissingError, opening
from edgemllm.media.frame import Frame

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def is_image(source: str) -> bool:
    """Return whether a path names a still image."""
    return Path(source).suffix.lower() in IMAGES


def read_image(path: str, seconds: float = 0.0, index: int = 0, name: str = "", most_pixels: int | None = None) -> Frame:
    """Read one image file, rotated as its EXIF orientation says. Raises MissingError and MediaError."""
    with opening(path, MediaError):
        if not Path(path).is_file():
            raise MissingError(f"no image {path}", "give an existing jpg, png, bmp or webp file")
        file = open(path, "rb")
    with file:
        return decode_image(file, path, seconds, index, name, most_pixels)


def decode_image(
    file: BinaryIO, path: str, seconds: float = 0.0, index: int = 0, name: str = "", most_pixels: int | None = None
) -> Frame:
    """Decode an open image; `path` is what messages call it. Raises MediaError, for more than `most_pixels` too."""
    refuse_bomb(file, path, most_pixels)
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                # Transparency lies on white, as in transformers.
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return Frame(np.array(upright.convert("RGB")), seconds, index, name)
    except (OSError, SyntaxError, ValueError) as error:
        size = file.seek(0, 2)
        raise MediaError(f"{path} cannot be read as an image ({size} bytes): {error}", "save it again as jpg") from error


def refuse_bomb(file: BinaryIO, name: str, most_pixels: int | None = None) -> None:
    """Raise MediaError for an image too large to decode without taking gigabytes; reads only its header."""
    try:
        width, height = Image.open(file).size
    except Image.DecompressionBombError as error:
        file.seek(0)
        raise MediaError(_too_large(file, name), "scale it down") from error
    except (OSError, SyntaxError, ValueError):
        return  # whoever decodes it says what is wrong with it
    if most_pixels is not None and width * height > most_pixels:
        raise MediaError(f"{name}: {width} x {height} pixels are more than {most_pixels / 10**6:g} million", "scale it down")


def _too_large(file: BinaryIO, name: str) -> str:
    """Return the message, with the sides that Pillow's own leaves out."""
    head = file.read(16)
    file.seek(0)
    make = next(make for make, accept in Image.OPEN.values() if accept is not None and accept(head) is True)
    width, height = make(file, name).size
    return f"{name}: {width} x {height} pixels are more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million"


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder: frame_2 before frame_10, without the hidden files that macOS leaves."""
    found = [file for file in folder.iterdir() if is_image(file.name) and not file.name.startswith(".")]
    if not found:
        raise MissingError(f"folder {folder} has no images", f"put {', '.join(sorted(IMAGES))} files into it")
    return sorted(found, key=natural)


def natural(path: Path) -> tuple[list[str | int], str]:
    """Return a sort key by which frame_2 comes before frame_10."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name
