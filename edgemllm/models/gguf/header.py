"""Read what a GGUF file says about itself, and check that its tensors are all there, before any of them is read.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package's own reader makes
objects of every token of the vocabulary: for 49,152 tokens it takes seconds and more memory than the model in 4 bits.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemllm.errors import MissingError, UsageError, opening

ELSEWHERE = "the model's safetensors checkpoint"
"""What to use in place of a file that has something unknown."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of metadata values of fixed size, as struct writes them."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""Bytes to which tensor data is aligned where `general.alignment` says nothing else."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]
    """In the order of torch: the last dimension is contiguous."""

    kind: Any
    """Its gguf.GGMLQuantizationType."""

    offset: int
    """Its first byte, from the beginning of the file."""

    size: int
    """Its bytes."""


@dataclass(frozen=True)
class Header:
    """The metadata and the table of tensors of a file."""

    path: Path
    metadata: dict[str, Any]
    """Numbers, strings and lists of numbers; of a list of strings its length alone."""

    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def own(self, key: str, default: Any = None) -> Any:
        """The value of a key that begins with the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def is_gguf(name: str) -> bool:
    """Whether `--model` names a GGUF file, also one that is not there: by its suffix, or by how the file begins."""
    if name.lower().endswith(".gguf"):
        return not Path(name).expanduser().is_dir()
    path = Path(name).expanduser()
    with opening(name, MissingError):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC


def read(name: str) -> Header:
    """The header of a file. Raises MissingError where it is absent, no GGUF or damaged, UsageError without the gguf package."""
    require_gguf()
    path = Path(name).expanduser()
    with opening(name, MissingError):
        if not path.is_file():
            raise MissingError(f"no model file {name}", "give an existing .gguf file, or another --model: edgemllm models")
        size = path.stat().st_size
        with path.open("rb") as file:
            if (found := file.read(4)) != MAGIC:
                what = f"begins with {found!r} instead of {MAGIC!r}" if found else "is empty"
                raise MissingError(f"model {name} is not a GGUF file: it {what}", "fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    return _Parser(name, data).header(path)
                except (struct.error, ValueError, KeyError, OverflowError) as error:
                    reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                    raise MissingError(
                        f"model {name} is damaged or cut short ({size} bytes): its header {reason}", "fetch it again"
                    ) from error


def require_gguf() -> None:
    """UsageError where the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a model in GGUF needs the package gguf, which is not installed", 'pip install "edgemllm[gguf]"'
        ) from error


class _Parser:
    """Walks through the header; whatever reads beyond the end raises struct.error or ValueError."""

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.name, self.data, self.position = name, data, len(MAGIC)

    def header(self, path: Path) -> Header:
        version = self.number("I")
        if version not in VERSIONS:
            raise MissingError(
                f"model {self.name} is GGUF of version {version}; read are {' and '.join(map(str, VERSIONS))}, little-endian",
                "convert it again with a llama.cpp of today",
            )
        tensors, values = self.number("Q"), self.number("Q")
        metadata = {}
        for _ in range(values):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        str(metadata["general.architecture"])  # KeyError: it lacks it
        table = [self.entry() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", ALIGNMENT))
        if alignment < 1:
            raise ValueError(f"says general.alignment = {alignment}")
        begin = -(-self.position // alignment) * alignment
        return Header(path, metadata, {entry[0]: self.tensor(begin, *entry) for entry in table})

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def skip(self, count: int) -> int:
        """Where `count` bytes begin that are read next."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise ValueError(f"asks for {count} bytes where {len(self.data) - start} are left")
        return start

    def string(self) -> str:
        length = self.number("Q")
        start = self.skip(length)
        return self.data[start : start + length].decode()

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"has a value of unknown kind {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            start = self.skip(count * struct.calcsize(f"<{NUMBERS[kind]}"))
            return list(struct.unpack_from(f"<{count}{NUMBERS[kind]}", self.data, start))
        if kind != STRING:
            raise ValueError(f"has a list of unknown kind {kind}")
        for _ in range(count):
            self.skip(self.number("Q"))
        return count

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, type and offset, as the table has them."""
        name, dimensions = self.string(), self.number("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"gives {name!r} {dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        return name, shape, self.number("I"), self.number("Q")

    def tensor(self, begin: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        """Raises MissingError for a tensor that is not wholly in the file, or of a type that is not known."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
        except ValueError as error:
            raise MissingError(
                f"model {self.name}: tensor {name} has type {kind}, which the gguf package here does not know",
                "pip install --upgrade gguf; or fetch it again",
            ) from error
        values, size = GGML_QUANT_SIZES[known]
        if shape[-1] % values or not math.prod(shape):
            raise ValueError(f"gives {name!r} of type {known.name} the shape {' x '.join(map(str, shape))}")
        info = TensorInfo(name, shape, known, begin + offset, math.prod(shape) // values * size)
        if info.offset + info.size > len(self.data):
            raise MissingError(
                f"model {self.name} is cut short: tensor {name} ends at byte {info.offset + info.size} of {len(self.data)}",
                "fetch it again",
            )
        return info
