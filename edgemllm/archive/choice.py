"""What to look at again for a question: the places that its queries and words lead to, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from edgemllm.archive.archive import Archive, Place
from edgemllm.archive.calibration import FoundOut
from edgemllm.archive.heads import Finders, queries_of
from edgemllm.archive.index import Array, Looks, fused, unpacked
from edgemllm.models.families.base import ModelFamily

APART_S = 3.0
"""Frames nearer to a better one than this show the same moment."""

MOMENTS = 16
"""Places that are considered; of each kind."""

PEAKS = 4
"""Places that are looked at before any of their neighbours."""


def ranked(
    blocks: Iterable[tuple[Sequence[Place], Sequence[bytes]]], finders: Finders, queries: Sequence[Array], peak: bool
) -> list[Place]:
    """Return the places that the queries of each head look at most, the best first; of frames one for each moment."""
    looks = [Looks(each, peak) for each in queries]
    places: list[Place] = []
    for some, blobs in blocks:
        keys, starts = unpacked(blobs, len(finders.heads), queries[0].shape[-1])
        for number, look in enumerate(looks):
            look.add(keys[:, number], starts)
        places += some
    if not places:
        return []
    scores = [look.scores() for look in looks]
    total = sum(score / max(float(score.max()), 1e-9) for score in scores)
    return list(_apart(places[number] for number in np.argsort(-np.asarray(total), kind="stable")))


def _apart(places: Iterable[Place]) -> Iterator[Place]:
    taken: list[Place] = []
    for place in places:
        near = (each.medium == place.medium and abs(each.first - place.first) <= APART_S for each in taken)
        if place.words or not any(near):
            taken.append(place)
            yield place
        if len(taken) == MOMENTS:
            return


def best(archive: Archive, family: ModelFamily, finders: FoundOut, question: str) -> list[Place]:
    """Return what a question leads to, the best first: frames by their keys, passages by their words and by keys."""
    frames: list[Place] = []
    if finders.pictures is not None:
        queries = queries_of(family, finders.pictures.heads, question)
        frames = ranked(archive.frame_blocks(), finders.pictures, queries, peak=True)
    queries = queries_of(family, finders.words.heads, question)
    by_keys = ranked(archive.passage_blocks(), finders.words, queries, peak=False)
    return fused(frames, fused(archive.matching(question, MOMENTS), by_keys))


def within(archive: Archive, best: Sequence[Place], room: int, cost: Callable[[Place], int]) -> list[Place]:
    """Return as many places as `room` tokens take, in the order of time: the best, then their neighbours, then the others."""
    chosen: dict[Place, None] = {}
    neighbours = (each for place in best[:PEAKS] for each in archive.around(place))
    for place in (*best[:PEAKS], *neighbours, *best[PEAKS:]):
        price = cost(place) if place not in chosen else room + 1
        if price <= room:
            chosen[place] = None
            room -= price
    return sorted(chosen, key=lambda place: (place.words, place.medium, place.first))
