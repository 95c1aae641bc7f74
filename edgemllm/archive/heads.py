"""Which query heads of a model find a picture or passage again by a question about it: found out once, without labels.

Few heads do (docs/measurements/archive.md). They are tried on slides and sentences of our own, whose questions are known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from edgemllm.archive.index import Array, Looks
from edgemllm.cache.attention import forward
from edgemllm.cache.focus import SINKS, Listener, latest_queries
from edgemllm.cache.kv_cache import KVCache
from edgemllm.media import slides
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.finders import CHUNK, FACTS, listen

SLIDES = 24
"""Slides of our own, each of another kind."""

NEAR = 0.9
"""A second head is asked too where it finds at least this share of what the best one finds."""


@dataclass(frozen=True)
class Head:
    """A query head of the managed layer at place `layer`, and the KV head whose `keys` it looks at."""

    layer: int
    head: int
    keys: int


@dataclass(frozen=True)
class Finders:
    """The heads that find a kind of thing, and how many of `asked` questions they led to the right place at once."""

    heads: tuple[Head, ...]
    first: int
    asked: int

    def as_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(text: str) -> Finders:
        """Return what `as_json` wrote."""
        fields = json.loads(text)
        return Finders(tuple(Head(**head) for head in fields["heads"]), fields["first"], fields["asked"])

    def line(self, what: str) -> str:
        """Return what a user should know of it."""
        where = " and ".join(f"layer {head.layer} head {head.head}" for head in self.heads)
        weak = "; too few to rely on" if 2 * self.first < self.asked else ""
        return f"questions find {what} with {where}: {self.first} of {self.asked} of our own at once{weak}"


@torch.inference_mode()
def keys_of(cache: KVCache, heads: Sequence[Head], count: int) -> Array:
    """Return the newest `count` unrotated keys that each head looks at, (count, heads, D) float32."""
    layers = [(cache.managed[each.layer], each.keys) for each in heads]
    found = [layer.unrotated_keys(slice(layer.length - count, layer.length))[0, head] for layer, head in layers]
    return torch.stack(found, 1).float().cpu().numpy()


@torch.inference_mode()
def queries_of(family: ModelFamily, heads: Sequence[Head], question: str) -> list[Array]:
    """Return the queries (rows, D) of a question, which goes through the model alone, in each head."""
    cache = listen(family, question)
    return [latest_queries(cache.managed[each.layer])[0, each.head].float().cpu().numpy() for each in heads]


def find_words(family: ModelFamily) -> Finders:
    """Return the heads that find a sentence by a question about it, tried on sentences of our own."""
    sizes = [len(family.tokenize(f" {sentence}")) for sentence, _ in FACTS]
    read = listen(family, "".join(f" {sentence}" for sentence, _ in FACTS))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return _best(family, read, starts, sum(sizes), [question for _, question in FACTS], peak=False)


@torch.inference_mode()
def find_pictures(family: ModelFamily) -> Finders | None:
    """Return the heads that find a slide by a question about it, tried on slides of our own; None where there is no video."""
    if family.video_token is None:
        return None
    rng = np.random.default_rng(0)
    kinds = [slides.KINDS[int(number)] for number in rng.permutation(len(slides.KINDS))[:SLIDES]]
    cache, clip, starts, position = family.new_cache(Listener(), None, CHUNK), family.video(0.5), [0], 0
    least = family.sizes(family.model.config).indivisible
    for second, kind in enumerate(kinds):
        picture = slides.draw(slides.Fact(kind, int(rng.integers(10))), 224, 224, rng)
        shown = [Frame(picture, second + half, number) for number, half in enumerate((0.0, 0.5))]  # some take pairs
        chunk = clip.frames(shown, position)
        assert chunk is not None
        for part in chunk.split(max(CHUNK, least)):
            forward(family.text_model, cache, part)
        position = chunk.next_position
        starts.append(cache.seen)
    questions = [slides.ask("number", kind) for kind in kinds]
    return _best(family, cache, np.array(starts[:-1]), cache.seen, questions, peak=True)


def _best(family: ModelFamily, read: KVCache, starts: Array, count: int, questions: Sequence[str], peak: bool) -> Finders:
    """Return the best one or two heads: each question's place, in the order of the questions, begins at one of `starts`."""
    asked = [listen(family, question).managed for question in questions]
    found: list[tuple[int, float, Head]] = []
    for number, layer in enumerate(read.managed):
        keys = layer.unrotated_keys()[0].float().cpu().numpy()[:, :count]
        queries = [latest_queries(alone[number])[0].float().cpu().numpy() for alone in asked]
        group = len(queries[0]) // len(keys)
        for head in range(len(queries[0])):
            worth = [_worth(each[head], keys[head // group], starts, peak) for each in queries]
            found.append((*_leads(worth), Head(number, head, head // group)))
    found.sort(key=lambda each: each[:2], reverse=True)
    heads = [each[2] for each in found[:2] if each[0] >= NEAR * found[0][0]]
    return Finders(tuple(heads), found[0][0], len(questions))


def _worth(queries: Array, keys: Array, starts: Array, peak: bool) -> Array:
    looks = Looks(queries, peak)
    keys = keys.copy()
    keys[:SINKS] = keys[SINKS:].mean(0)  # the first tokens draw attention whatever is asked
    looks.add(keys, starts)
    return looks.scores()


def _leads(worth: Sequence[Array]) -> tuple[int, float]:
    """Return how often the right place is first, and by how much it leads, for places in the order of the questions."""
    others = [np.delete(each, number).max() for number, each in enumerate(worth)]
    right = [float(each[number]) for number, each in enumerate(worth)]
    leads = [mine / max(float(other), 1e-9) for mine, other in zip(right, others, strict=True)]
    return sum(lead > 1 for lead in leads), float(np.log(np.maximum(leads, 1e-3)).mean())
