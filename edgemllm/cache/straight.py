"""One token through a decoder of Llama's shape on a processor, without what transformers does between two products.

A small model's token spends as long between its products as in them. This is the same arithmetic in fewer calls, for layers
that are known to be of this shape; attention is ours as ever, so that policies see what they always see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

SHAPED = ("llama", "mistral", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_vl", "smollm3")
"""transformers' models whose layers do what `StraightLayer` does, and nothing else."""
SOURCES = {f"transformers.models.{name}.modeling_{name}" for name in SHAPED}

_layers: WeakKeyDictionary[Any, StraightLayer | None] = WeakKeyDictionary()
_models: WeakKeyDictionary[Any, Straight | None] = WeakKeyDictionary()


class Straight:
    """The layers of a language model, for one token."""

    def __init__(self, layers: Sequence[StraightLayer], text_model: Any) -> None:
        self.layers, self.norm = layers, text_model.norm
        self.scale = getattr(text_model.rotary_emb, "attention_scaling", 1.0)
        """What YaRN multiplies queries and keys by where it rotates them."""

    def __call__(self, cache: Any, attention: Callable[..., Any]) -> Tensor:
        """Run the pass that was started; returns hidden states (1, 1, E)."""
        x: Tensor = cache.now.chunk.embeds.view(1, -1)
        for layer, slots in zip(self.layers, cache.layers, strict=True):
            x = x + layer.attend(x, cache, slots, attention, self.scale)
            x = x + layer.think(x)
        return normed(self.norm, x)[None]


class StraightLayer:
    """One decoder layer. Its packed layers of the same input are joined, once."""

    def __init__(self, layer: Any) -> None:
        self.attn, self.mlp = layer.self_attn, layer.mlp
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = together(self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)
        self.gate_up = together(self.mlp.gate_proj, self.mlp.up_proj)
        self.norms_heads = hasattr(self.attn, "q_norm")

    def attend(self, x: Tensor, cache: Any, slots: Any, attention: Callable[..., Any], scale: float) -> Tensor:
        """Return what attention adds to x (1, E)."""
        attn = self.attn
        query, key, value = (rows.view(1, -1, 1, attn.head_dim) for rows in self.qkv(normed(self.first, x)))
        if self.norms_heads:
            query, key = attn.q_norm(query), attn.k_norm(key)
        if scale != 1.0:
            query, key = query * scale, key * scale
        out, _ = attention(attn, query, *slots.update(key, value), None, scaling=attn.scaling, kv_cache=cache)
        added: Tensor = attn.o_proj(out.view(1, -1))
        return added

    def think(self, x: Tensor) -> Tensor:
        """Return what the gated product adds to x (1, E)."""
        gate, up = self.gate_up(normed(self.second, x))
        added: Tensor = self.mlp.down_proj(self.mlp.act_fn(gate) * up)
        return added


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


def normed(norm: Any, x: Tensor) -> Tensor:
    """Return the root-mean-square norm of x (1, E), rounded where transformers rounds."""
    whole = x.float()
    flat = whole.view(-1)
    scale = (float(flat.dot(flat)) / len(flat) + norm.variance_epsilon) ** -0.5
    out: Tensor = norm.weight * (whole * scale).to(x.dtype)
    return out


def together(*layers: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return layers of the same input as one product where they can be joined, as packed ones can (models/packed.py)."""
    joined = layers[0].join(layers[1:]) if hasattr(layers[0], "join") else None
    if joined is None:
        return lambda x: [layer(x) for layer in layers]
    sizes = [layer.out_features for layer in layers]
    return lambda x: joined(x).split(sizes, -1)
