"""Text of any length in constant memory: files, folders, standard input, or a named data set, read block by block.

Several sources follow each other as `cat` would join them.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edgemllm.errors import EdgeError, MediaError, MissingError, UsageError, nearest, opening

BLOCK_BYTES = 1 << 16
ENDINGS = (".txt", ".text", ".md")
"""What is read of a folder."""

DATASETS = {
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "pg19": ("emozilla/pg19", None),  # the parquet mirror: the original is a loading script, which `datasets` refuses
}
"""Names for `--text`: hub data set and configuration; NAME/SPLIT, the split is `test` by default."""


class Text:
    """The text of some sources; `blocks()` begins it anew each time.

    `again`: standard input is kept in a temporary file as it is read, because it will be read more than once.
    Raises MissingError for what is not there and UsageError for a name that means nothing, before anything is read.
    """

    def __init__(self, sources: Sequence[str], offline: bool = False, again: bool = False) -> None:
        self.sources = list(sources)
        self.parts: list[Part] = []
        stdin = Pipe(sys.stdin.buffer, again)
        for source in sources:
            with opening(source, MissingError):
                exists = Path(source).exists()
            if source == "-":
                self.parts.append(stdin)
            elif exists and Path(source).is_fifo():
                print(f"waiting for somebody to write to {source}", file=sys.stderr, flush=True)
                self.parts.append(Pipe(open(source, "rb"), again))
            elif exists:
                self.parts += _files(Path(source))
            elif source.split("/")[0] in DATASETS:
                self.parts.append(DataSet(source, offline))
            else:
                known = nearest(source, DATASETS)
                raise MissingError(
                    f"no text {source}{known}", f"a file, a folder of {ENDINGS[0]} files, -, or {', '.join(DATASETS)}"
                )
        if self.parts.count(stdin) > 1:
            raise UsageError("standard input can be read once: --text - is given twice", "--text - once")

    @property
    def size(self) -> int | None:
        """Return the bytes in all, where that can be known without reading."""
        paths = [part for part in self.parts if isinstance(part, Path) and part.is_file()]
        return sum(path.stat().st_size for path in paths) if len(paths) == len(self.parts) else None

    def blocks(self) -> Iterator[str]:
        """Return the text from its beginning, in pieces. Raises MediaError where it is not UTF-8."""
        for part in self.parts:
            if isinstance(part, DataSet):
                yield from part.blocks()
            elif isinstance(part, Path):
                try:
                    with open(part, "rb") as file:
                        yield from _decode(iter(lambda: file.read(BLOCK_BYTES), b""), str(part))
                except OSError as error:
                    raise MissingError(f"cannot read {part}: {error.strerror}") from error
            else:
                yield from _decode(part.blocks(), part.name)


class Pipe:
    """Bytes of standard input or a named pipe, kept on disk (not in memory) if they will be needed again."""

    def __init__(self, stream: BinaryIO, again: bool) -> None:
        self.stream = stream
        self.name = "standard input" if stream is sys.stdin.buffer else str(stream.name)
        self.kept: Any = None
        if again:
            self.kept = tempfile.TemporaryFile()
            weakref.finalize(self, self.kept.close)

    def blocks(self) -> Iterator[bytes]:
        """Return what was read before, then what is still to come."""
        offset = 0
        while True:
            block = b""
            if self.kept is not None:
                self.kept.seek(offset)
                block = self.kept.read(BLOCK_BYTES)
            if not block:
                block = self.stream.read(BLOCK_BYTES)
                if not block:
                    return
                if self.kept is not None:
                    self._keep(block)
            offset += len(block)
            yield block

    def _keep(self, block: bytes) -> None:
        try:
            self.kept.seek(0, 2)
            self.kept.write(block)
            self.kept.flush()
        except OSError as error:
            raise EdgeError(
                f"{self.name} is read more than once and its copy in {tempfile.gettempdir()} fails: {error.strerror}",
                "one policy, no --loop, and no --compare-full; or --text FILE; or TMPDIR with more space",
            ) from error


def _files(path: Path) -> list[Part]:
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
    if not found:
        raise MissingError(f"folder {path} has no text ({', '.join(ENDINGS)})", "name the files")
    return list(found)


def _decode(blocks: Iterator[bytes], name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    try:
        for block in blocks:
            done += len(block)
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        if done == len(error.object) and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise MediaError(f"{name} is UTF-16 text, not UTF-8", "iconv -f UTF-16 -t UTF-8") from error
        if b"\0" in error.object:
            raise MediaError(f"{name} is no text: it has bytes of value 0", "give a text file") from error
        # `error.object` ends where the block ends; it may begin with bytes held back from the block before.
        at = done - len(error.object) + error.start
        raise MediaError(f"{name} is not UTF-8 text: byte {at} ({error.reason})", "iconv -f LATIN1 -t UTF-8") from error


class DataSet:
    """The `text` column of a hub data set, each row on a line of its own.

    Rows are streamed, so that some of them are in memory; offline, a data set fetched before is read from disk. Raises
    UsageError without the package `datasets`, MissingError where the data set is not to be had.
    """

    def __init__(self, source: str, offline: bool) -> None:
        self.source = source
        offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        if offline:
            os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when the package is imported
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UsageError(
                f"--text {source} needs the package `datasets`, which is not installed",
                "pip install 'edgemllm[datasets]', or --text FILE",
            ) from error
        name, _, split = source.partition("/")
        repository, configuration = DATASETS[name]
        with self._reachable():
            self.rows = load_dataset(repository, configuration, split=split or "test", streaming=not offline)

    def blocks(self) -> Iterator[str]:
        """Return the text from its beginning."""
        with self._reachable():
            for row in self.rows:
                yield row["text"].removesuffix("\n") + "\n"

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library's errors come from many packages
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MissingError(
                f"data set {self.source} is neither fetched before nor to be reached: {reason}",
                "the same while online, or --text FILE",
            ) from error


Part = Path | Pipe | DataSet
