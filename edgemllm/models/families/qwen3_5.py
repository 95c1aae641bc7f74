"""Qwen3.5: one layer in four attends, the others are gated delta nets (https://arxiv.org/abs/2412.06464) of constant state.

Pictures, videos and positions are those of Qwen3-VL without DeepStack. A policy decides in the attending layers alone, and
what a delta net has taken in stays in its state, so that evicted tokens are not quite gone, and none can be taken back.
"""

from __future__ import annotations

from typing import Any, ClassVar

from edgemllm.cache.attention import NAME
from edgemllm.cache.size import LayerSpec
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.families.qwen_vl import QwenVLFamily
from edgemllm.models.spec import head_shape


def delta_net_layers(text: Any) -> tuple[LayerSpec, ...]:
    """Return what each layer of a Qwen3.5 text configuration remembers."""
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    conv = (2 * keys + values) * text.linear_conv_kernel_dim
    state = LayerSpec("state", state_values=conv, state_floats=values * text.linear_key_head_dim)
    full = LayerSpec("full", *head_shape(text))
    return tuple(full if kind == "full_attention" else state for kind in text.layer_types)


class Qwen35Family(QwenVLFamily):
    """Qwen3.5 checkpoints, dense or with a mixture of experts."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
    text_types: ClassVar[tuple[str, ...]] = ("qwen3_5_text", "qwen3_5_moe_text")
    vision_types: ClassVar[tuple[str, ...]] = ("qwen3_5_vision", "qwen3_5_moe_vision")
    since: ClassVar[str] = "5.21"

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return delta_net_layers(text)


class Qwen35TextFamily(ModelFamily):
    """Qwen3.5 without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5_text", "qwen3_5_moe_text")
    text_types: ClassVar[tuple[str, ...]] = Qwen35Family.text_types
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    attention: ClassVar[Any] = NAME
    axes: ClassVar[int] = 3
    since: ClassVar[str] = Qwen35Family.since

    @property
    def text_model(self) -> Any:
        return self.model.model

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return delta_net_layers(text)
