"""What makes the sessions of a command: with `--archive`, those that keep one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from edgemllm.archive.archive import Archive
from edgemllm.archive.session import ArchivedSession
from edgemllm.commands.archive.options import ArchiveOptions
from edgemllm.session import Session


@contextlib.contextmanager
def sessions(options: ArchiveOptions, say: Callable[[str], None]) -> Iterator[Callable[..., Session]]:
    """Give what makes sessions; `say` gets what a user has to know of their archive, which is closed at the end.

    Raises as `Archive` does, and UsageError for a limit that holds nothing.
    """
    limit = options.most_archive_bytes
    if options.archive is None:
        yield Session
        return
    with contextlib.closing(Archive(options.archive, limit, say=say)) as archive:
        yield functools.partial(ArchivedSession, archive=archive, share=options.archive_share)
