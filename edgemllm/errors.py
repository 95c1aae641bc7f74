"""Errors that a user can act on: what happened, with which numbers, and what to type instead."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator


class EdgeError(Exception):
    """An expected failure. The command line prints `message` and `hint` and exits with `exit_code`, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeError):
    """An option has a value that means nothing."""

    exit_code = 2


class MissingError(EdgeError):
    """A model, file or text is not there, not complete, or damaged."""

    exit_code = 3


class TextError(MissingError):
    """A text is no text from some byte on, or cannot be read any more."""


class DoesNotFitError(EdgeError):
    """It would not fit in memory or in the KV budget; nothing was loaded."""

    exit_code = 4


class OutOfMemoryError(EdgeError):
    """Memory or the KV budget ran out on the way."""

    exit_code = 5


class MediaError(EdgeError):
    """A video, image or stream cannot be opened or decoded."""

    exit_code = 6


@contextlib.contextmanager
def opening(path: str | os.PathLike[str], kind: type[EdgeError]) -> Iterator[None]:
    """Raise `kind` where the system refuses a path: a name that is too long, a folder that may not be entered."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own
            raise
        reason = os.strerror(error.errno)
        raise kind(f"{shortened(str(path))} cannot be opened: {reason[:1].lower()}{reason[1:]}", "check the path") from error


class out_of_memory:
    """Turns the shapes in which memory runs out into one error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _means_out_of_memory(str(error))):
            first = str(error).splitlines()[0] if str(error) else "the host has no more"
            raise OutOfMemoryError(
                f"out of memory: {first}",
                "a smaller --kv-budget or --chunk, or --quant nf4; edgemllm plan shows the parts",
            ) from error


def _means_out_of_memory(text: str) -> bool:
    # The second and third are how Tegra says it: no OutOfMemoryError there.
    signs = ("out of memory", "NVML_SUCCESS == r INTERNAL ASSERT", "NvMapMemAlloc", "can't allocate memory")
    return any(sign in text for sign in signs)


def shortened(text: str, most: int = 200) -> str:
    """Return the text, or its beginning and its length where it is too long for a message."""
    return text if len(text) <= most else f"{text[:60]}... ({len(text)} characters)"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a clause for a message, such as " (did you mean 'inf-mllm'?)", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
