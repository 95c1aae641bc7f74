"""What `edgemllm archive` does with its options: list, check, search, export and delete."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from edgemllm.archive.archive import Archive, Place
from edgemllm.archive.contents import summary, turns
from edgemllm.archive.look import named, parts
from edgemllm.commands.archive.options import SpanOptions
from edgemllm.commands.events import headed, write
from edgemllm.commands.tables import aligned
from edgemllm.device.memory import human_bytes
from edgemllm.errors import MissingError, UsageError
from edgemllm.units import clock

LATEST = 5
"""Turns that are shown."""


def show(path: Path, as_json: bool) -> None:
    """Write what is in an archive."""
    with contextlib.closing(Archive(path, writing=False)) as archive:
        found = described(archive)
    if as_json:
        write(headed("archive", found))
        return
    print(f"{path}: {human_bytes(found['bytes'])}, made with {found['model'] or 'no model yet'}")
    for what in ("pictures", "words"):
        if (tried := found[what]) is not None:
            print(f"questions find {what}: {tried['first']} of {tried['asked']} of our own at once")
    rows = [["video or text", "frames", "from", "to", "passages", "characters"]]
    for each in found["media"]:
        ends = [clock(each[name]) if each["frames"] else "" for name in ("first_s", "last_s")]
        rows.append([each["name"], f"{each['frames']:,}", *ends, f"{each['passages']:,}", f"{each['characters']:,}"])
    print("\n".join(aligned(rows)))
    for turn in found["turns"][-LATEST:]:
        print(f"{clock(turn['time'])}  {turn['question']}  {turn['answer']}")


def described(archive: Archive) -> dict[str, Any]:
    """Return the fields of the JSON object."""
    about = archive.database.about
    return {
        "path": str(archive.path),
        "bytes": archive.database.nbytes,
        "model": about.get("model"),
        **{what: json.loads(about[what]) if about.get(what) else None for what in ("pictures", "words")},
        "media": summary(archive),
        "turns": turns(archive),
    }


def check(path: Path, as_json: bool) -> None:
    """Read all of an archive. Raises MissingError where it is damaged."""
    with contextlib.closing(Archive(path, writing=False)) as archive:
        archive.database.check()
        counts = archive.counts()
    if as_json:
        write(headed("archive", {"path": str(path), "ok": True, **counts}))
    else:
        print(f"{path} is whole: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")


def search(path: Path, words: str, as_json: bool) -> None:
    """Write the passages that share words with some, the best first."""
    with contextlib.closing(Archive(path, writing=False)) as archive:
        write_places(archive, archive.matching(words, 16), as_json)


def write_places(archive: Archive, places: list[Place], as_json: bool) -> None:
    """Write places, the best first. Raises MissingError where there is none."""
    media, text = archive.media(), {place: archive.text(place) for place in places if place.words}
    if as_json:
        fields = [
            {"name": media[each.medium], "span": [each.first, each.last], "text": text.get(each)} for each in places
        ]  # fmt: skip
        write(headed("archive", {"path": str(archive.path), "places": fields}))
        return
    if not places:
        raise MissingError("nothing found", "other words; frames are searched with --model")
    for each in places:
        print("  ".join([named([each]), media[each.medium], " ".join(text.get(each, "").split())]).rstrip())


def export(path: Path, folder: Path, span: SpanOptions) -> None:
    """Write the frames of a span as .jpg, and its passages as .txt, into a folder. Raises MissingError for an empty span."""
    with contextlib.closing(Archive(path, writing=False)) as archive:
        medium = _medium(archive, span.source)
        places = archive.within(medium, *span.seconds())
        if not places:
            raise MissingError(f"{path} has nothing there", f"edgemllm archive {path}")
        folder.mkdir(parents=True, exist_ok=True)
        for place in places:
            name = named([place]).replace(":", "-").replace(" ", "-").replace(",", "")
            if place.words:
                (folder / f"{name}.txt").write_text(archive.text(place))
            else:
                (folder / f"{name}.{round(1000 * (place.first % 1)):03d}.jpg").write_bytes(archive.picture(place))
    print(f"{len(places)} files in {folder}: {', '.join(map(named, parts(places)))}")


def delete(path: Path, span: SpanOptions) -> None:
    """Delete a span for good."""
    with contextlib.closing(Archive(path, limit=None)) as archive:
        count = archive.delete(_medium(archive, span.source), *span.seconds())
    print(f"{count} frames and passages deleted")


def _medium(archive: Archive, name: str | None) -> int:
    """Return the number of the video or text that was named, or of the only one."""
    media = archive.media()
    found = [number for number, each in media.items() if name in (each, None)]
    if len(found) != 1:
        wrong = f"{archive.path} has no {name}" if name else f"{archive.path} holds {len(media)} videos and texts"
        raise UsageError(wrong, f"--source {' or '.join(media.values()) or 'NAME'}")
    return found[0]
