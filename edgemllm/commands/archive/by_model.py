"""What of `edgemllm archive` needs the model that the archive was made with."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgemllm.archive import choice
from edgemllm.archive.archive import Archive
from edgemllm.archive.calibration import calibrate, finders_of
from edgemllm.commands.archive.command import write_places
from edgemllm.launch import prepare
from edgemllm.models.families.base import ModelFamily
from edgemllm.planning.request import Request


def search(path: Path, question: str, as_json: bool, model: str) -> None:
    """Write the frames and passages that a question leads to, the best first, as a second look finds them."""
    with contextlib.closing(Archive(path, writing=False)) as archive:
        family = _family(model)
        write_places(archive, choice.best(archive, family, finders_of(family, archive), question), as_json)


def begin(path: Path, model: str) -> None:
    """Try out which heads of a model find things, and write it into an archive, which is begun where there is none.

    Raises UsageError for an archive of another model.
    """
    with contextlib.closing(Archive(path, say=print)) as archive:
        family = _family(model)
        if "weights" in archive.database.about:
            finders_of(family, archive)
        calibrate(family, archive)


def _family(model: str) -> ModelFamily:
    return prepare(Request(model=model)).open().family
