"""SmolLM3 (https://huggingface.co/blog/smollm3): a Llama whose every fourth layer knows no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from edgemllm.cache.size import LayerSpec
from edgemllm.models.families.text import TextFamily


class SmolLM3Family(TextFamily):
    """SmolLM3 checkpoints."""

    model_types: ClassVar[tuple[str, ...]] = ("smollm3",)
    text_types: ClassVar[tuple[str, ...]] = ("smollm3",)

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        known = zip(super().layers(text), text.no_rope_layers, strict=True)
        return tuple(replace(layer, rotary=bool(rotary)) for layer, rotary in known)
