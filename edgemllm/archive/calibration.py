"""The heads with which an archive's index is made: those it was begun with, or tried out for a new one."""

from __future__ import annotations

from dataclasses import dataclass

from edgemllm.archive.archive import Archive
from edgemllm.archive.heads import Finders, find_pictures, find_words
from edgemllm.errors import UsageError
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.weights import fingerprint


@dataclass(frozen=True)
class FoundOut:
    """The heads that find pictures (None: the model takes no video) and words."""

    pictures: Finders | None
    words: Finders


def finders_of(family: ModelFamily, archive: Archive) -> FoundOut:
    """Return the heads that find things in this archive.

    Raises UsageError where the archive is of another model: its keys mean nothing to this one.
    """
    about, weights = archive.database.about, fingerprint(family.model)
    if "weights" not in about:
        return calibrate(family, archive)
    if about["weights"] != weights:
        raise UsageError(
            f"archive {archive.path} was made with {about['model']} of other weights or precision than {family.name} has here",
            "the --model, --quant and --dtype it was made with, or another --archive",
        )
    return FoundOut(Finders.of_json(about["pictures"]) if about["pictures"] else None, Finders.of_json(about["words"]))


def calibrate(family: ModelFamily, archive: Archive) -> FoundOut:
    """Try out which heads find things, write it into a new archive, and say how well it works."""
    pictures, words = find_pictures(family), find_words(family)
    archive.database.about = {
        "model": family.name, "weights": fingerprint(family.model), "words": words.as_json(),
        "pictures": pictures.as_json() if pictures else "",
    }  # fmt: skip
    lines = [pictures.line("pictures")] if pictures else []
    archive.say("; ".join([*lines, words.line("passages")]))
    return FoundOut(pictures, words)
