"""One decoded token: on CUDA a captured graph where the same shapes come back, else the plain forward pass.

A bounded cache comes back to the same lengths again and again: between two compactions it grows by `slack` tokens, in storage
that never moves. So the step at each of these few lengths is captured once, as it is, and replayed from then on; room is made
before, eagerly. A model whose kernels cannot be captured (bitsandbytes int8, dynamic rotary embeddings) runs as before.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from edgemllm.cache.attention import forward, run
from edgemllm.cache.chunk import Chunk
from edgemllm.cache.kv_cache import KVCache

log = logging.getLogger(__name__)
MAX_GRAPHS = 128
"""Graphs held at once; a circle has at most 64 lengths (`edge`)."""


class Decoder:
    """Runs single tokens through the language model `text_model` and `cache`."""

    def __init__(self, text_model: Any, cache: KVCache) -> None:
        self.text_model, self.cache = text_model, cache
        self.capturing = text_model.device.type == "cuda"
        """Also false after a capture has failed."""
        self.replayed = False
        """The last step was a graph."""
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._met: set[Hashable] = set()
        self._storage: tuple[int, ...] = ()
        self._input: Chunk | None = None
        self._ring: Tensor | None = None
        self._pool: Any = None

    @property
    def warm(self) -> bool:
        """Return whether decoding is steady: cache lengths recur in order, so one replay is followed by another."""
        return self.replayed or not self.capturing or not self._cycles()

    def step(self, chunk: Chunk) -> Tensor:
        """Return the hidden state (B, 1, E) of a chunk of one token."""
        self.replayed = False
        if not (self.capturing and chunk.deepstack is None and self._cycles()):
            return forward(self.text_model, self.cache, chunk)
        self.cache.begin(self._copied(chunk))
        self._copy_ring()
        self.cache.make_room(1)
        key = self._shape()
        if key not in self.graphs:
            if key not in self._met:
                self._met.add(key)
                return run(self.text_model, self.cache)
            if not self._capture(key):
                return run(self.text_model, self.cache)
        else:
            self.replayed = True
            for layer in self.cache.with_slots:
                layer.advance(1, {})
        graph, hidden = self.graphs[key]
        graph.replay()
        return hidden.clone()  # the next replay writes over it

    def forget(self) -> None:
        """Drop every graph, for tensors that were moved; their memory goes with them, and so does its pool."""
        self.graphs, self._met, self._pool = {}, set(), None

    def _cycles(self) -> bool:
        """Return whether every layer evicts when it is full again, so that its length recurs; one that was trimmed grows."""
        return all(layer.counts.evicted and layer.slots.capacity == layer.budget for layer in self.cache.with_slots)

    def _shape(self) -> Hashable:
        """Return what the kernels of a step depend on besides the contents of storage."""
        storage = tuple(layer.slots.tensors["keys"].data_ptr() for layer in self.cache.with_slots)
        if storage != self._storage or len(self.graphs) >= MAX_GRAPHS or len(self._met) >= 2 * MAX_GRAPHS:
            self.forget()
            self._storage = storage
        return tuple(layer.store.next_shape() for layer in self.cache.with_slots), self.cache.rope.stride

    def _copied(self, chunk: Chunk) -> Chunk:
        """Return the token, copied to the addresses that graphs read from."""
        names = ["embeds", "positions", "modality", "time", *(() if chunk.tokens is None else ("tokens",))]
        if self._input is None or self._input.embeds.dtype != chunk.embeds.dtype:
            fixed = {name: getattr(chunk, name).clone(memory_format=torch.contiguous_format) for name in names}
            self._input = dataclasses.replace(chunk, **fixed)
        for name in names:
            getattr(self._input, name).copy_(getattr(chunk, name))
        return dataclasses.replace(self._input, stride=chunk.stride, appends=chunk.appends)

    def _copy_ring(self) -> None:
        now = self.cache.now
        if self._ring is None or self._ring.shape != now.ring.shape:
            self._ring = now.ring.clone()
        self._ring.copy_(now.ring)
        now.ring = self._ring

    def _capture(self, key: Hashable) -> bool:
        """Record the step that was started; counts then stand as after it, though its kernels have not run."""
        before = [layer.length for layer in self.cache.with_slots]
        self.cache.now.rotations.clear()  # what was computed before it would be gone by the next replay
        graph = torch.cuda.CUDAGraph()
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool):
                hidden = run(self.text_model, self.cache)
        except RuntimeError as error:
            log.info("decoding without CUDA graphs: %s", str(error).splitlines()[0])
            self.capturing, self.graphs = False, {}
            for layer, length in zip(self.cache.with_slots, before, strict=True):
                layer.advance(length - layer.length, {})
            return False
        finally:
            self.cache.now.rotations.clear()  # what was computed inside a graph is valid only there
        self.graphs[key] = (graph, hidden)
        return True
