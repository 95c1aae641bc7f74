"""Which layers of a model find a passage again by its question: found out once, on sentences of our own.

In SmolLM2-135M two of thirty layers do; the others look at the sentence's form, at its end or at nothing (docs/log.md).
"""

from __future__ import annotations

import itertools
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgemllm.cache.attention import forward
from edgemllm.cache.focus import LOOKERS, SINKS, SPAN, Listener, attention, latest_queries, neighbourhood
from edgemllm.cache.kv_cache import KVCache
from edgemllm.models.families.base import ModelFamily

CHUNK = 64
FACTS = (
    ("The old bridge over the river was painted green last spring.", "Which colour is the bridge?"),
    ("Every Tuesday the library closes at four in the afternoon.", "When does the library close?"),
    ("My uncle Robert keeps seventeen goats behind his cottage.", "How many goats does the uncle have?"),
    ("The error came from a broken cable in the cellar.", "What caused the error?"),
    ("Doctor Mills wrote the letter to the mayor of the town.", "Who wrote the letter?"),
    ("In the harbour lies a ship that carries coffee from Brazil.", "What does the ship carry?"),
    ("The spare tyre is under the seat of the lorry.", "Where is the spare tyre?"),
    ("Her violin teacher was born in Salzburg.", "Where was the violin teacher born?"),
    ("The ticket to the museum costs nine pounds.", "How much is the museum ticket?"),
    ("At the corner stands a bakery with a blue door and two lanterns.", "What stands at the corner?"),
    ("The second witness said that the car was silver.", "What did the second witness say about the car?"),
    ("For her birthday Alice got a telescope from her cousin.", "What did Alice get for her birthday?"),
    ("The meeting was moved to Thursday because of the strike.", "Why was the meeting moved?"),
    ("Our cat sleeps in a basket next to the stove.", "Where does the cat sleep?"),
    ("The tallest tree in the park is an oak of forty metres.", "How tall is the oak?"),
    ("Captain Reed lost his compass near the northern cape.", "What did Captain Reed lose?"),
    ("The soup tastes best with a little lemon and pepper.", "What makes the soup taste best?"),
    ("Last winter the lake froze for eleven weeks.", "How long was the lake frozen?"),
    ("The password of the router is written on its bottom.", "Where is the password of the router?"),
    ("A fox stole the neighbour's hens during the storm.", "Which animal took the hens?"),
)

_known: WeakKeyDictionary[ModelFamily, tuple[int, ...]] = WeakKeyDictionary()


@torch.inference_mode()
def listen(family: ModelFamily, text: str) -> KVCache:
    """Return the cache of a text that went through the model alone; its layers keep the text's latest queries."""
    cache = family.new_cache(Listener(), None, CHUNK)
    for part in family.text(family.tokenize(text), 0).split(CHUNK):
        forward(family.text_model, cache, part)
    return cache


@torch.inference_mode()
def finders(family: ModelFamily) -> tuple[int, ...]:
    """Return the places, among the managed layers, of those in which a question looks at its own sentence before others."""
    if family not in _known:
        leads = torch.stack(_leads(family)).clamp_min(1e-9).log().mean(0)
        _known[family] = tuple(sorted(leads.topk(min(LOOKERS, len(leads))).indices.tolist()))
    return _known[family]


def _leads(family: ModelFamily) -> list[Tensor]:
    """Return for each question how many times as much its sentence is looked at, at best, as any place elsewhere, (layers,)."""
    sizes = [len(family.tokenize(f" {sentence}")) for sentence, _ in FACTS]
    ends = list(itertools.accumulate(sizes))
    read = listen(family, "".join(f" {sentence}" for sentence, _ in FACTS))
    found = []
    for (_, question), end, size in zip(FACTS, ends, sizes, strict=True):
        asked = listen(family, question)
        looks = [
            neighbourhood(attention(latest_queries(alone), layer, alone.scaling, SINKS), SINKS, 0).mean((0, 1))
            for alone, layer in zip(asked.managed, read.managed, strict=True)
        ]
        place = torch.arange(ends[-1], device=family.device)
        right, near = ((place >= end - size - around) & (place < end + around) for around in (0, SPAN // 2))
        found.append(torch.stack([each[right].max() / each[~near].max() for each in looks]))
    return found
