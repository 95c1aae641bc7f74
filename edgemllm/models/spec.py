"""A model's sizes from its configuration alone.

Parameters are counted on torch's `meta` device, which has shapes but no memory; everything else is read from the configuration.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgemllm.cache.size import LayerSpec
from edgemllm.choices import ITEM_BYTES, PACKED
from edgemllm.errors import UsageError
from edgemllm.models.matrix import matrix_bytes, packed_bytes

if TYPE_CHECKING:
    from torch import nn


# Qwen's towers take any resolution: its processor gives a video frame at most 768 tokens of 2 x 2 patches.
ANY_RESOLUTION_PATCHES = 3072


@dataclass(frozen=True)
class LinearShape:
    """`count` linear layers of one shape."""

    rows: int
    columns: int
    count: int

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.count


@dataclass(frozen=True)
class VisionSpec:
    """What decides the peak of encoding a frame."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    patch_values: int
    """Numbers in one patch: channels x height x width x `frames`."""

    patches: int
    """Patches of the largest frame (or tile) that is encoded at once."""

    frames: int = 1
    """Frames of a video that share their patches and are encoded as one picture."""

    kept_states: int = 0
    """Hidden states that live until the end: all where the model picks one of them, DeepStack's, or none."""


@dataclass(frozen=True)
class Sizes:
    """What pictures take at most, as a model family says it for planning."""

    frame_tokens: int = 0
    """Tokens of a video frame; 0: no video."""

    image_tokens: int = 0
    """Tokens of a still image; 0: no images."""

    patches: int | None = None
    """Patches of the largest picture that goes through a tower of any resolution at once; None: the tower has one size."""

    indivisible: int = 1
    """Tokens that have to come in one forward pass, because they see each other both ways."""


@dataclass(frozen=True)
class ModelSpec:
    """Exact parameter counts, and the shapes that the plan needs."""

    model_type: str
    linears: tuple[LinearShape, ...]
    """Weights of linear layers inside the language model's blocks: what quantisation may shrink."""

    other_text_parameters: int
    """Norms, biases and whatever else of the language model is never quantised."""

    embedding_parameters: int
    """Token embeddings and output head; counted once when they are the same tensor."""

    vision_parameters: int
    """Everything outside of the language model: vision tower and projector. Never quantised."""

    not_quantised: tuple[str, ...]
    """Full names of the modules to give to `llm_int8_skip_modules`: a short name there skips nothing."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    max_position_embeddings: int
    vision: VisionSpec | None = None
    stored_bytes: int | None = None
    """The language model's linear layers as they lie on disk, of a checkpoint that was quantised beforehand."""

    lookups: tuple[LinearShape, ...] = ()
    """Embeddings of which a token reads one row in every layer (Gemma 4); quantised only where those of tokens are."""

    on_cpu: bool = False
    """Runs on a processor, where int8 and int4 are torch's packed weights, embeddings and output head included."""

    def with_patches(self, patches: int | None) -> ModelSpec:
        """Return the same with pictures of `patches` patches; None leaves the size that the tower has."""
        if self.vision is None or patches is None:
            return self
        return replace(self, vision=replace(self.vision, patches=patches))

    @property
    def linear_parameters(self) -> int:
        return sum(shape.parameters for shape in self.linears)

    @property
    def parameters(self) -> int:
        fixed = self.other_text_parameters + self.embedding_parameters + self.vision_parameters
        return self.linear_parameters + sum(shape.parameters for shape in self.lookups) + fixed

    @property
    def lookup_width(self) -> int:
        """Return the numbers that a token reads of `lookups`."""
        return sum(shape.columns * shape.count for shape in self.lookups)

    def packs(self, quant: str) -> bool:
        """Return whether `quant` means torch's packed weights: no other device has 4 bits in this form."""
        return self.stored_bytes is None and bool(self.linears) and (quant == "int4" or (self.on_cpu and quant in PACKED))

    def linear_bytes(self, quant: str, dtype: str) -> int:
        """Return the bytes of all quantisable weights under `quant`, or of those that already are."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        size = packed_bytes if self.packs(quant) else matrix_bytes
        return sum(shape.count * size(shape.rows, shape.columns, quant, dtype) for shape in self.linears)

    def head_bytes(self, rows: int, quant: str, dtype: str) -> int:
        """Return the bytes of `rows` rows of embeddings or output head: packed ones take 8 bits."""
        return self._table_bytes(rows, self.hidden, quant, dtype)

    def _table_bytes(self, rows: int, columns: int, quant: str, dtype: str) -> int:
        size = packed_bytes if self.packs(quant) else matrix_bytes
        return size(rows, columns, "int8" if self.packs(quant) else "none", dtype)

    def weights_bytes(self, quant: str, dtype: str, vision_dtype: str | None = None) -> int:
        """Return the bytes of all weights: the language model's linear layers shrink, and packed embeddings.

        `vision_dtype`: of everything outside the language model; None: `dtype`.
        """
        kept = self.other_text_parameters * ITEM_BYTES[dtype] + self.vision_parameters * ITEM_BYTES[vision_dtype or dtype]
        embeddings = self.head_bytes(self.embedding_parameters // self.hidden, quant, dtype)
        embeddings += sum(each.count * self._table_bytes(each.rows, each.columns, quant, dtype) for each in self.lookups)
        return self.linear_bytes(quant, dtype) + embeddings + kept

    def decode_read_bytes(self, quant: str, dtype: str) -> int:
        """Return the weight bytes that one decoded token reads: the language model and its output head, no vision tower."""
        kept = self.other_text_parameters * ITEM_BYTES[dtype]
        return self.linear_bytes(quant, dtype) + self.head_bytes(self.vocab, quant, dtype) + kept

    @classmethod
    def from_config(cls, config: Any) -> ModelSpec:
        """Derive it from a transformers configuration; no weights are read or allocated."""
        model = _on_meta(config)
        decoder = model.get_decoder()
        text = config.get_text_config(decoder=True)
        linears, other = _split(decoder)
        embeddings = _embeddings(model)
        lookups = _lookups(decoder)
        counted = other + sum(shape.parameters for shape in (*linears, *lookups)) + embeddings
        heads, kv_heads, head_dim = max(head_shape(layer_config(text, place)) for place in (0, -1))
        return cls(
            model_type=str(config.model_type),
            linears=linears,
            other_text_parameters=other,
            embedding_parameters=embeddings,
            vision_parameters=sum(parameter.numel() for parameter in model.parameters()) - counted,
            not_quantised=_outside(model, decoder),
            layers=int(text.num_hidden_layers),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=int(text.hidden_size),
            intermediate=_intermediate(text),
            vocab=int(text.vocab_size),
            max_position_embeddings=int(text.max_position_embeddings),
            vision=_vision(config),
            lookups=lookups,
        )


def attention_layers(config: Any, axes: int = 1) -> tuple[LayerSpec, ...]:
    """Return what each layer of a text configuration remembers, where all attend, some of them to a sliding window.

    Raises UsageError for layers that do neither.
    """
    count, shape = config.num_hidden_layers, head_shape(config)
    window = getattr(config, "sliding_window", None)
    if window is not None and window >= config.max_position_embeddings:
        window = None  # longer than what the model knows: it never hides anything
    kinds = list(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * count)
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or (axes > 1 and window and "sliding_attention" in kinds):
        raise UsageError(
            f"{config.model_type} with {', '.join(unknown) or 'sliding windows'} is not supported: a KV cache policy "
            "has no say in such layers",
            "choose a model whose layers use full attention",
        )
    full, sliding = LayerSpec("full", *shape), LayerSpec("sliding", *shape, window)
    return tuple(sliding if kind == "sliding_attention" and window else full for kind in kinds)


def layer_config(text: Any, layer: int) -> Any:
    """Return the configuration of one layer: the whole one, where all layers are alike."""
    return text.per_layer_config[layer] if getattr(text, "is_heterogeneous", False) else text


def head_shape(text: Any) -> tuple[int, int, int]:
    """Return attention heads, key-value heads and the dimension of a head, of a text configuration."""
    heads = int(text.num_attention_heads)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return heads, int(kv_heads), int(getattr(text, "head_dim", None) or text.hidden_size // heads)


def _on_meta(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    vision = getattr(config, "vision_config", None) is not None
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    except ValueError as error:  # transformers lists a hundred classes here
        reason = str(error).partition("\n")[0]
        raise UsageError(f"'{config.model_type}' is not a model that can be planned for: {reason}") from None


def _split(decoder: nn.Module) -> tuple[tuple[LinearShape, ...], int]:
    """Return the quantisable matrices of the language model, and its other parameters without the embeddings."""
    from torch import nn

    shapes: Counter[tuple[int, int]] = Counter()
    other = 0
    for module in decoder.modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if type(module) is nn.Linear:
            shapes[(module.out_features, module.in_features)] += 1
            other += own - module.weight.numel()
        elif not isinstance(module, nn.Embedding):
            other += own
    return tuple(LinearShape(*shape, count) for shape, count in sorted(shapes.items())), other


def _embeddings(model: Any) -> int:
    weights = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return sum({id(weight): weight.numel() for weight in weights}.values())


def _lookups(decoder: Any) -> tuple[LinearShape, ...]:
    table = getattr(decoder, "embed_tokens_per_layer", None)
    if table is None:
        return ()
    layers = int(decoder.config.num_hidden_layers)
    return (LinearShape(table.num_embeddings, table.embedding_dim // layers, layers),)


def _intermediate(text: Any) -> int:
    """Return the width of the widest feed-forward network: of layers that share keys, Gemma 4 may double it."""
    width = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    return 2 * width if getattr(text, "use_double_wide_mlp", False) and text.num_kv_shared_layers else width


def _outside(model: nn.Module, decoder: nn.Module) -> tuple[str, ...]:
    """Return the largest modules that hold linear layers but no part of the language model's blocks."""
    from torch import nn

    inside = {id(module) for module in decoder.modules()}
    found: list[str] = []
    for name, module in model.named_modules():
        parts = list(module.modules())
        if any(id(part) in inside for part in parts) or not any(isinstance(part, nn.Linear) for part in parts):
            continue
        if not any(name.startswith(f"{parent}.") for parent in found):
            found.append(name)
    return tuple(found)


def _vision(config: Any) -> VisionSpec | None:
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return None
    # In Qwen2-VL hidden_size is the language model's, embed_dim the tower's own; Gemma 4 of 12B has no tower.
    hidden = int(getattr(vision, "embed_dim", None) or getattr(vision, "mm_embed_dim", None) or vision.hidden_size)
    patch = _side(getattr(vision, "model_patch_size", None) or getattr(vision, "patch_size", 14))
    image = getattr(vision, "image_size", None)
    channels = int(getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3)
    layers = int(getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None) or 1)
    frames = int(getattr(vision, "temporal_patch_size", None) or 1)
    picks = getattr(config, "vision_feature_layer", None) is not None
    return VisionSpec(
        layers=layers,
        hidden=hidden,
        intermediate=int(getattr(vision, "intermediate_size", None) or 4 * hidden),
        heads=int(getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None) or 1),
        patch_values=channels * patch * patch * frames,
        frames=frames,
        patches=(_side(image) // patch) ** 2 + 1 if image else ANY_RESOLUTION_PATCHES,
        kept_states=layers + 1 if picks else len(getattr(vision, "deepstack_visual_indexes", None) or ()),
    )


def _side(size: Any) -> int:
    return int(max(size)) if isinstance(size, list | tuple) else int(size)
