"""Text models with plain rotary positions: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from typing import Any, ClassVar

from edgemllm.cache.attention import NAME
from edgemllm.models.base import ModelFamily


class TextFamily(ModelFamily):
    """A decoder without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3")
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    attention: ClassVar[Any] = NAME

    @property
    def text_model(self) -> Any:
        return self.model.model
