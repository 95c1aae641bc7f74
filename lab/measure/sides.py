"""The contenders of a speed measurement: each one decodes with a cache of its own, on weights that all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import DynamicCache

from edgemllm.cache import attention as ours
from edgemllm.cache.bits import UNQUANTISED, KVBits
from edgemllm.cache.fused_attention import FusedAttention
from edgemllm.commands.bench.cell import now, warm_up
from edgemllm.models.families.base import ModelFamily
from edgemllm.policies.base import CachePolicy
from edgemllm.session import Session
from lab.measure import policy, straight_h2o

STOCK, STRAIGHT = "stock", straight_h2o.NAME
TURNING, EAGER, BLOCKS = "turning", "eager", "blocks"


def parts_of(side: str) -> tuple[CachePolicy, set[str], KVBits]:
    """Return the policy of a side, its ways, and the bits of its cache. Raises UsageError where one of them is unknown."""
    name, *words = side.split("+")
    ways = {TURNING, EAGER, BLOCKS}.intersection(words)
    bits = [KVBits.parse(word) for word in words if word not in ways]
    return policy.build(name), ways, bits[0] if bits else UNQUANTISED


class Side:
    """One way of decoding, with a cache of its own."""

    def __init__(self, side: str, family: ModelFamily, budget: int, chunk: int) -> None:
        self.name, self.family, self.session = side, family, None
        self.ways: set[str] = set()
        self.cache: Any
        if side == STOCK:
            self.attention, self.cache = "sdpa", DynamicCache(config=family.config)
        elif side == STRAIGHT:
            self.attention, self.cache = STRAIGHT, straight_h2o.StraightH2O(family.text_model.rotary_emb, budget)
        else:
            chosen, self.ways, bits = parts_of(side)
            self.attention = ours.NAME
            self.session = Session(family, chosen, budget if chosen.bounded else None, chunk, bits=bits)
            self.cache = self.session.cache
            for layer in self.cache.with_slots:
                layer.store_rotated = TURNING not in self.ways
            self.session.decoder.capturing &= EAGER not in self.ways

    def __str__(self) -> str:
        return self.name

    def fill(self, count: int, chunk: int) -> None:
        """Put `count` random tokens into the cache without running the model."""
        config, spec = self.family.config, self.family.spec.layers[0]
        shape = (1, spec.kv_heads, chunk, spec.head_dim)
        keys, values = (torch.randn(shape, dtype=self.family.dtype, device=self.family.device) for _ in range(2))
        queries = torch.randn(1, config.num_attention_heads, chunk, spec.head_dim, dtype=keys.dtype, device=keys.device)
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            part = [each[:, :, :size] for each in (keys, values, queries)]
            if self.session is None:
                for number in range(config.num_hidden_layers):
                    self.cache.update(part[0], part[1], number)
                continue
            self.cache.begin(self.family.text([0] * size, self.session.position))
            self.session.position += size
            for layer in self.cache.managed:
                layer.update(part[0], part[1])
                if layer.policy.query_window:
                    layer.remember_queries(part[2], spec.head_dim**-0.5)
                if layer.policy.observe_window:
                    heads = spec.heads if layer.policy.per_query_head else spec.kv_heads
                    self.cache.now.observed = slice(layer.length - 1, layer.length)
                    layer.policy.observe(layer, torch.rand(1, heads, 1, layer.length, device=keys.device).softmax(-1))

    def feed(self, ids: Sequence[int]) -> Tensor:
        """Return logits (1, V) after the tokens."""
        self.family.model.config.get_text_config()._attn_implementation = self.attention
        if self.session is not None:
            if len(ids) == 1:
                with self._reading():
                    return self.session.step(ids[0])
            logits = self.session.feed(self.family.text(ids, self.session.position))
            self.session.policy.after_prefill(self.session.cache.managed)
            return logits
        embeds = self.family.text_model.get_input_embeddings()(torch.tensor([list(ids)], device=self.family.device))
        more: dict[str, Any] = {}
        if self.attention == STRAIGHT:
            more = {"h2o": self.cache, "position_ids": torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)}
        more[ours.cache_keyword(type(self.family.text_model).forward)] = self.cache
        out = self.family.text_model(inputs_embeds=embeds, use_cache=True, **more)
        return self.family.logits(out.last_hidden_state[:, -1:])[:, 0]

    def warm(self) -> None:
        """Let graphs be captured."""
        if self.session is not None:
            with self._reading():
                warm_up(self.session, 7)

    def _reading(self) -> AbstractContextManager[object]:
        """Return what lets codes be unpacked in blocks, where the side asks for it."""
        return mock.patch.object(FusedAttention, "works", False) if BLOCKS in self.ways else nullcontext()

    def timed(self, ids: Sequence[int]) -> float:
        """Return milliseconds until the next token is known."""
        began = now(self.family.device)
        int(self.feed(ids).argmax(-1))
        return (now(self.family.device) - began) * 1e3


def perplexity(session: Session, ids: list[int]) -> float:
    """Return that of a session that reads tokens: how well it foretells each from those before it."""
    loss, last = 0.0, 0
    for hidden in session.passes(session.family.text(ids, 0)):
        wanted = torch.tensor(ids[last + 1 : last + 1 + hidden.shape[1]])
        scores = session.family.logits(hidden)[0, : len(wanted)].float().log_softmax(-1)
        loss, last = loss - float(scores.gather(1, wanted[:, None]).sum()), last + hidden.shape[1]
    return math.exp(loss / (len(ids) - 1))
