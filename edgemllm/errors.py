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


def shortened(text: str, most: int = 200) -> str:
    """Return the text, or its beginning and its length where it is too long for a message."""
    return text if len(text) <= most else f"{text[:60]}... ({len(text)} characters)"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a clause for a message, such as " (did you mean 'inf-mllm'?)", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
