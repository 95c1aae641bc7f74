"""Text of any length in constant memory: files, folders, standard input, or a named data set, read block by block.

Several sources follow each other as `cat` would join them.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgemllm.errors import MissingError, TextError, UsageError, nearest, opening
from edgemllm.media.pipe import BLOCK_BYTES, Pipe, never

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
        if self.sources.count("-") > 1:
            raise UsageError("standard input can be read once: --text - is given twice", "--text - once")
        for source in sources:
            with opening(source, MissingError):
                exists = Path(source).exists()
            if source == "-":
                self.parts.append(Pipe(sys.stdin.buffer, again))
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

    @property
    def size(self) -> int | None:
        """Return the bytes in all, where that can be known without reading."""
        paths = [part for part in self.parts if isinstance(part, Path) and part.is_file()]
        return sum(path.stat().st_size for path in paths) if len(paths) == len(self.parts) else None

    @property
    def name(self) -> str:
        """Return what to call it in a message."""
        return ", ".join("standard input" if source == "-" else source for source in self.sources)

    def blocks(self, stopped: Callable[[], bool] = never) -> Iterator[str]:
        """Return the text from its beginning, in pieces, until its end or until `stopped` says so, also while a pipe is silent.

        Raises TextError where it cannot be read or is not UTF-8, after what comes before.
        """
        for part in self.parts:
            if stopped():
                return
            if isinstance(part, DataSet):
                yield from part.blocks()
                continue
            try:
                yield from decoded(_bytes(part, stopped), str(part) if isinstance(part, Path) else part.name, stopped)
            except OSError as error:
                raise TextError(f"cannot read {self.name}: {error.strerror}", "check the file") from error

    def check(self) -> None:
        """Read what can be read twice, before anything slow. Raises MissingError where it is damaged or empty."""
        if self.size == 0:
            raise empty(self.name)
        files = [str(part) for part in self.parts if isinstance(part, Path) and part.is_file()]
        for _ in Text(files).blocks() if files else ():
            pass


def document(source: str) -> Text:
    """Return one file, or standard input (-), whose lines can be numbered: checked, where it can be read twice.

    Raises MissingError for what is not there, is a folder, is empty or is not UTF-8.
    """
    with opening(source, MissingError):
        if Path(source).is_dir():
            raise MissingError(f"{source} is a folder, not a text", "name the files: --text a.txt --text b.txt")
        if source != "-" and not Path(source).exists():
            raise MissingError(f"no text {source}", "a file, or - for standard input")
    text = Text([source])
    text.check()
    return text


def empty(name: str) -> MissingError:
    """Return the error for a text without a character."""
    return MissingError(f"there is no text: {name} is empty", "--text book.txt")


def _bytes(part: Path | Pipe, stopped: Callable[[], bool]) -> Iterator[bytes]:
    if isinstance(part, Pipe):
        yield from part.blocks(stopped)
        return
    with open(part, "rb") as file:
        while not stopped() and (block := file.read(BLOCK_BYTES)):
            yield block


def _files(path: Path) -> list[Part]:
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
    if not found:
        raise MissingError(f"folder {path} has no text ({', '.join(ENDINGS)})", "name the files")
    return list(found)


def decoded(blocks: Iterator[bytes], name: str, stopped: Callable[[], bool] = never) -> Iterator[str]:
    """Return the characters of blocks of UTF-8, which end, or are `stopped` anywhere.

    Raises TextError with the place of the first byte that is not UTF-8, after what comes before it.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    try:
        for block in blocks:
            done += len(block)
            yield decoder.decode(block)
        if not stopped():
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        yield error.object[: error.start].decode("utf-8-sig" if done == len(error.object) else "utf-8")
        raise not_text(error, done, name) from error


def not_text(error: UnicodeDecodeError, done: int, name: str) -> TextError:
    """Return the error for blocks of which `done` bytes, the last of them in `error`, were decoded."""
    if done == len(error.object) and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return TextError(f"{name} is UTF-16 text, not UTF-8", "iconv -f UTF-16 -t UTF-8")
    # `error.object` ends where the block ends; it may begin with bytes held back from the block before.
    at = done - len(error.object) + error.start
    if b"\0" in error.object:
        return TextError(f"{name} is no text: it has bytes of value 0, and byte {at} is not UTF-8", "give a text file")
    return TextError(f"{name} is not UTF-8 text: byte {at} ({error.reason})", "iconv -f LATIN1 -t UTF-8")


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
