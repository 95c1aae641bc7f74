"""What a model's keys and values look like, channel by channel: found out once, on sentences and pictures of our own.

Those of pictures lie elsewhere than those of words, so that either kind alone would even the other one badly
(docs/measurements/kv-bits.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from edgemllm.cache.attention import forward
from edgemllm.cache.bits import Channels
from edgemllm.cache.focus import Listener
from edgemllm.cache.kv_cache import KVCache
from edgemllm.cache.layer import CacheLayer
from edgemllm.media import slides
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.finders import CHUNK, FACTS, listen

TOKENS = 256
"""Pictures are shown until they have given this many."""
SIDE = 224
"""Their pixels, each way."""

_known: WeakKeyDictionary[ModelFamily, tuple[Mapping[str, Channels], ...]] = WeakKeyDictionary()


@torch.inference_mode()
def channels(family: ModelFamily) -> tuple[Mapping[str, Channels], ...]:
    """Return the channels of `keys`, unrotated, and of `values`, for every layer with slots."""
    if family not in _known:
        kinds = [listen(family, "".join(f" {sentence} {question}" for sentence, question in FACTS))]
        if family.video_token is not None or family.image_token is not None:
            kinds.append(look(family))
        count = min(cache.seen for cache in kinds)
        _known[family] = tuple(_of([*layers], count) for layers in zip(*(cache.with_slots for cache in kinds), strict=True))
    return _known[family]


def _of(layers: list[CacheLayer], count: int) -> Mapping[str, Channels]:
    """Return the channels of the same layer in several caches, of `count` tokens each."""

    def whole(rows: list[Tensor]) -> Tensor:
        return torch.cat([each[:, :, :count] for each in rows], 2)

    keys, values = whole([layer.unrotated_keys() for layer in layers]), whole([layer.values for layer in layers])
    return {"keys": Channels.of(keys), "values": Channels.of(values)}


@torch.inference_mode()
def look(family: ModelFamily) -> KVCache:
    """Return the cache of pictures that went through the model alone: slides and scenes of our own in turn."""
    rng, cache, clip = np.random.default_rng(0), family.new_cache(Listener(), None, CHUNK), family.video(0.5)
    number, position, least = 0, 0, max(CHUNK, family.sizes(family.model.config).indivisible)
    while cache.seen < TOKENS:
        fact = slides.Fact(slides.KINDS[int(rng.integers(len(slides.KINDS)))], int(rng.integers(10)))
        picture = slides.draw(fact, SIDE, SIDE, rng) if number % 4 else next(slides.footage(rng, 1, SIDE, SIDE))
        pair = [Frame(picture, (number + half) / 2, number + half) for half in (0, 1)]  # some models take pairs
        chunk = clip.frames(pair, position) if family.video_token is not None else family.image(pair[0], position)
        assert chunk is not None
        for part in chunk.split(least):
            if cache.seen < TOKENS:  # a picture may have thousands
                forward(family.text_model, cache, part)
        number, position = number + 2, chunk.next_position
    return cache
