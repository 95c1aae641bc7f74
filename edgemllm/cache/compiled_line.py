"""One token through packed layers in compiled loops: what `straight.py` does, where cache and activations are float32.

Room is made in all layers before the first one runs: what a policy keeps follows from earlier tokens alone. What it watches, it
sees after each layer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemllm.cache.bits import UNQUANTISED
from edgemllm.cache.managed_layer import ManagedLayer
from edgemllm.loops.compiled import loops, threads_for


class CompiledLine:
    """Layers whose weights are known to the loops, and what the threads write for each other."""

    def __init__(self, layers: Sequence[Any], packed: Sequence[Sequence[Any]]) -> None:
        """Look up the weights of straight layers; `packed` are their products, as loops take them."""
        self.loops, self.layers = loops("layer"), layers
        self.weights = [self._weights(*each) for each in zip(layers, packed, strict=True)]
        self.values = sum(product[0].in_features * product[0].out_features for product in layers[0].products)
        """Of the weights of a layer."""

    @classmethod
    def of(cls, layers: Sequence[Any]) -> CompiledLine | None:
        """Return the compiled line through straight layers; None where some are not as loops take them."""
        packed = [[_loop(product) for product in layer.products] for layer in layers]
        fit = all(None not in each for each in packed) and all(_is_silu(layer.act_fn) for layer in layers)
        fit = fit and all(norm.weight.dtype == torch.float32 for layer in layers for norm in layer.norms)
        fit = fit and hasattr(os, "sched_yield")  # which threads that wait call, and which Windows does not have
        if not fit or len({tuple(each.weight.dtype for each in products) for products in packed}) > 1:
            return None  # one function is compiled for all of them
        return cls(layers, packed)

    def fits(self, x: Tensor, cached: Sequence[Any]) -> bool:
        """Return whether x (1, E) and layers of the cache are of the type that loops take, and all slots are in sight."""
        return x.dtype == torch.float32 and all(_fits(layer) for layer in cached)

    def __call__(self, x: Tensor, cache: Any) -> Tensor:
        """Run the pass that was started on x (1, E), which stays as it is; returns hidden states (1, E)."""
        out = x.clone()
        cached = [self._cached(*each) for each in zip(self.layers, cache.layers, strict=True)]
        threads, slots = threads_for(self.values), max(each.keys.shape[1] for each in cached)
        arrived = np.zeros(1, np.int64)

        def let_go() -> None:
            arrived[0] = loops("barrier").LET_GO

        work = functools.partial(self._run, out.numpy()[0], cache, cached, self._scratch(slots, threads), arrived)
        if threads == 1 or not loops("team").team(threads - 1).run(functools.partial(work, threads), let_go):
            work(1, 0)
        return out

    def _run(
        self, x: Any, cache: Any, cached: Sequence[Any], scratch: Sequence[Any], arrived: Any, threads: int, part: int
    ) -> None:
        """Do a thread's part of all layers, on x (E,)."""
        for number, (weights, slots) in enumerate(zip(self.weights, cached, strict=True)):
            # In turn, as others may have begun the next layer while this one is shown. Further they do not come.
            own = scratch[number % len(scratch)]
            self.loops.decode(part, threads, arrived, x, weights, slots, own)
            if part == 0:
                self._tell(self.layers[number], cache.layers[number], own)

    def _cached(self, layer: Any, slots: ManagedLayer) -> Any:
        """Make room for the token, and return a layer of the cache as loops take it."""
        cos, sin = (part[0, :, 0].numpy() for part in slots.admit(1))
        keys, values = (slots.slots.tensors[name][0].numpy() for name in ("keys", "values"))
        return self.loops.Cached(keys, values, cos, sin, slots.length, layer.scaling)

    def _tell(self, layer: Any, slots: ManagedLayer, scratch: Any) -> None:
        """Give a layer of the cache the queries and attention weights that its policy wants to see."""
        policy = slots.policy
        if policy.query_window:
            heads = len(scratch.weights)
            query = torch.from_numpy(scratch.heads).view(1, -1, 1, layer.width)[:, :heads]
            slots.remember_queries(layer.attn.q_norm(query) if layer.norms_heads else query, layer.scaling)
        if policy.observe_window:
            slots.show(torch.from_numpy(scratch.weights[:, : slots.length])[None, :, None])

    def _scratch(self, slots: int, threads: int) -> Sequence[Any]:
        """Return room for two layers with this many slots."""
        first, weights = self.layers[0], self.weights[0]
        sizes: tuple[tuple[int, ...], ...] = (
            (len(weights.qkv.bias),),
            (first.heads, slots),
            (threads, first.heads, 2),
            (threads, first.heads, first.width),
            (max(len(weights.o.bias), len(weights.down.bias)),),
            (len(weights.gate_up.bias),),
        )
        return [self.loops.Scratch(*(np.empty(size, np.float32) for size in sizes)) for _ in range(2)]

    def _weights(self, layer: Any, packed: Sequence[Any]) -> Any:
        first, second = layer.norms
        of_heads = (layer.attn.q_norm, layer.attn.k_norm) if layer.norms_heads else (None, None)
        norms = (first, second, *of_heads)
        one, two, query, key = (np.empty(0, np.float32) if norm is None else norm.weight.detach().numpy() for norm in norms)
        epsilons = np.array([0.0 if norm is None else norm.variance_epsilon for norm in norms], np.float32)
        qkv, o, gate_up, down = packed
        return self.loops.Weights(one, qkv, query, key, o, two, gate_up, down, epsilons)


def _loop(product: Sequence[Any]) -> Any:
    """Return layers of one input as loops take them; None where they are several, or not packed so."""
    return product[0].loop() if len(product) == 1 and hasattr(product[0], "loop") else None


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _fits(layer: Any) -> bool:
    return (
        isinstance(layer, ManagedLayer)
        and layer.is_initialized
        and layer.bits == UNQUANTISED
        and layer.dtype == torch.float32
        and layer.numbering.rotated
        and layer.widths[0] == layer.widths[1]
        and layer.window is None
    )
