"""One token through a decoder of Llama's shape on a processor, without what transformers does between two products.

A small model's token spends as long between its products as in them. This is the same arithmetic in fewer calls, for layers
that are known to be of this shape; attention is ours as ever, so that policies see what they always see.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgemllm.cache.compiled_line import CompiledLine
from edgemllm.cache.rope import rotate, rotate_queries

SHAPED = ("llama", "mistral", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_vl", "smollm3")
"""transformers' models whose layers do what `StraightLayer` does, and nothing else."""
SOURCES = {f"transformers.models.{name}.modeling_{name}" for name in SHAPED}

Run = Callable[[Tensor], Tensor]
Attended = Callable[..., Tensor]
"""`attention.attended`, which this file cannot import as it is imported by it."""

_layers: WeakKeyDictionary[Any, StraightLayer | None] = WeakKeyDictionary()
_models: WeakKeyDictionary[Any, Straight | None] = WeakKeyDictionary()


class Straight:
    """The layers of a language model, for one token."""

    def __init__(self, layers: Sequence[StraightLayer], text_model: Any) -> None:
        self.layers, self.norm = layers, normed(text_model.norm)
        self.scale = getattr(text_model.rotary_emb, "attention_scaling", 1.0)
        """What YaRN multiplies queries and keys by where it rotates them."""

    def __call__(self, cache: Any, attended: Attended) -> Tensor:
        """Run the pass that was started; returns hidden states (1, 1, E)."""
        x: Tensor = cache.now.chunk.embeds.view(1, -1)
        if self.compiled is not None and self.scale == 1.0 and self.compiled.fits(x, cache.layers):
            x = self.compiled(x, cache)
        else:
            for layer, slots in zip(self.layers, cache.layers, strict=True):
                x = x + layer.attend(x, slots, attended, self.scale)
                x = x + layer.think(x)
        return self.norm(x)[None]

    @functools.cached_property
    def compiled(self) -> CompiledLine | None:
        """The same in compiled loops; None where weights are not packed, or not for a processor that has the loops."""
        return CompiledLine.of(self.layers)


class StraightLayer:
    """One decoder layer, whose parts are looked up once. Packed layers of the same input are joined."""

    def __init__(self, layer: Any) -> None:
        self.attn, self.act_fn = layer.self_attn, layer.mlp.act_fn
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self.first, self.second = (normed(norm) for norm in self.norms)
        attn, mlp = self.attn, layer.mlp
        inputs = ((attn.q_proj, attn.k_proj, attn.v_proj), (attn.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))
        self.products = [joined(*layers) for layers in inputs]
        """Layers of one input, as few as they can be."""
        self.qkv, self.o, self.gate_up, self.down = (together(*layers) for layers in self.products)
        self.width, self.scaling = self.attn.head_dim, self.attn.scaling
        self.heads, self.kv_heads = (each.out_features // self.width for each in (self.attn.q_proj, self.attn.k_proj))
        self.norms_heads = hasattr(self.attn, "q_norm")

    def attend(self, x: Tensor, slots: Any, attended: Attended, scale: float) -> Tensor:
        """Return what attention adds to x (1, E)."""
        heads = self.qkv(self.first(x)).view(1, -1, 1, self.width)
        query_key, value = heads.split((self.heads + self.kv_heads, self.kv_heads), 1)
        if self.norms_heads:
            query, key = query_key.split((self.heads, self.kv_heads), 1)
            query_key = torch.cat((self.attn.q_norm(query), self.attn.k_norm(key)), 1)
        if scale != 1.0:
            query_key = query_key * scale
        query = admitted(slots, query_key, value, self.scaling)
        return self.o(attended(slots, query, self.scaling).view(1, -1))

    def think(self, x: Tensor) -> Tensor:
        """Return what the gated product adds to x (1, E)."""
        gate, up = self.gate_up(self.second(x)).chunk(2, 1)
        return self.down(self.act_fn(gate) * up)


def admitted(slots: Any, query_key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Put a token's key and value into a layer of the cache, and return its rotated queries (1, H, 1, D).

    `query_key` (1, H + H_kv, 1, D): its unrotated queries and keys, which are rotated together where they turn alike.
    """
    parts = (query_key.shape[1] - value.shape[1], value.shape[1])
    query: Tensor
    query, key = query_key.split(parts, 1)
    if not slots.is_initialized:
        slots.lazy_initialization(key, value)
    rotation = slots.admit(1)
    if slots.policy.query_window:
        slots.remember_queries(query, scale)
    if slots.numbering.rotated and rotation[0].shape[1] == 1:
        query, key = rotate(query_key, rotation).split(parts, 1)
    else:
        query, key = rotate_queries(query, rotation), rotate(key, rotation) if slots.numbering.rotated else key
    slots.store.append(key, value)
    return query


def straight(text_model: Any) -> Straight | None:
    """Return the straight line through a language model; None where its layers are of another shape, or not on a processor."""
    if text_model not in _models:
        layers = [straight_layer(layer) for layer in text_model.layers]
        fits = text_model.device.type == "cpu" and None not in layers
        _models[text_model] = Straight([each for each in layers if each], text_model) if fits else None
    return _models[text_model]


def straight_layer(layer: Any) -> StraightLayer | None:
    """Return the straight line through a decoder layer; None for any other module."""
    if layer not in _layers:
        shaped = type(layer).__module__ in SOURCES and type(layer).__name__.endswith("DecoderLayer")
        _layers[layer] = StraightLayer(layer) if shaped else None
    return _layers[layer]


def normed(norm: Any) -> Run:
    """Return the root-mean-square norm of a row x (1, E), rounded where transformers rounds."""
    weight, size, epsilon = norm.weight, norm.weight.numel(), norm.variance_epsilon

    def run(x: Tensor) -> Tensor:
        whole = x.float()
        flat = whole.view(-1)
        scale = (float(flat.dot(flat)) / size + epsilon) ** -0.5
        out: Tensor = weight * (whole * scale).to(x.dtype)
        return out

    return run


def joined(*layers: Any) -> tuple[Any, ...]:
    """Return layers of the same input as one, where they are packed and fit together (models/packed.py), else as they are."""
    if len(layers) > 1 and hasattr(layers[0], "join") and (whole := layers[0].join(layers[1:])) is not None:
        return (whole,)
    return layers


def together(*layers: Any) -> Run:
    """Return what gives the outputs of layers of the same input side by side."""
    runs: list[Run] = [layer.row() if hasattr(layer, "row") else layer for layer in layers]
    return runs[0] if len(runs) == 1 else lambda x: torch.cat([run(x) for run in runs], -1)
