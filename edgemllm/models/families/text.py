"""Text models with rotary positions: Llama, Mistral, Qwen2, Qwen3, Phi-3, and GPT-NeoX (Pythia) with partial rotation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from edgemllm.cache.attention import NAME
from edgemllm.models.families.base import ModelFamily


class TextFamily(ModelFamily):
    """A decoder without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox")
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    attention: ClassVar[Any] = NAME

    @property
    def text_model(self) -> Any:
        return self.model.base_model

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits
