"""Tiny random models of the real configuration classes, and the stock logits they give."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.chunk import Chunk
from edgemllm.cache.layer import KVCache
from edgemllm.cache.positions import Rope

VOCABULARY, IMAGE, VIDEO = 97, 96, 95
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
}


class Tiny(SimpleNamespace):
    """A stock model with what the seam needs to know of it."""

    model: Any
    text: Any
    axes: int
    step: int
    make_inputs: Callable[[Any], dict[str, Any]]

    def use(self, name: str) -> Tiny:
        """Choose the language model's attention."""
        multimodal = hasattr(self.model.config, "vision_config")
        self.model.set_attn_implementation({"text_config": name, "vision_config": "sdpa"} if multimodal else name)
        return self

    def stock(self, **inputs: Any) -> Tensor:
        self.use("sdpa")
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def run(self, chunk: Chunk, size: int, policy: Any, budgets: list[int | None] | int | None = None) -> Tensor:
        """Logits of all tokens through our cache, in chunks."""
        self.use(NAME)
        self.cache = self.new_cache(policy, budgets)
        hidden = [forward(self.text, self.cache, part) for part in chunk.split(size)]
        logits: Tensor = self.model.lm_head(torch.cat(hidden, 1))
        return logits

    def new_cache(self, policy: Any, budgets: list[int | None] | int | None = None) -> KVCache:
        layers = self.text.config.num_hidden_layers
        each = budgets if isinstance(budgets, list) else [budgets] * layers
        return KVCache(policy, Rope(self.text.rotary_emb, self.axes, self.step), each)

    def text_chunk(self, ids: Tensor, offset: int = 0) -> Chunk:
        return Chunk.of_text(self.text.embed_tokens(ids), offset, self.axes)


def random_ids(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 90, (1, count), generator=torch.Generator().manual_seed(seed))


def text_only(cls: Any, config: Any) -> Tiny:
    torch.manual_seed(0)
    model = cls(config).eval()
    return Tiny(model=model, text=model.model, axes=1, step=1)


def llama() -> Tiny:
    return text_only(LlamaForCausalLM, LlamaConfig(**TEXT))


def qwen2() -> Tiny:
    return text_only(Qwen2ForCausalLM, Qwen2Config(**TEXT))


def qwen3() -> Tiny:
    return text_only(Qwen3ForCausalLM, Qwen3Config(**TEXT, head_dim=16))


def yarn_llama() -> Tiny:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128}
    return text_only(LlamaForCausalLM, LlamaConfig(**TEXT, rope_parameters=rope))


def multimodal(cls: Any, config: Any, axes: int = 1, step: int = 1) -> Tiny:
    torch.manual_seed(0)
    model = cls(config).eval()
    return Tiny(model=model, text=model.model.language_model, axes=axes, step=step)


def llava() -> Tiny:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_id=IMAGE)
    return multimodal(LlavaForConditionalGeneration, config)


def llava_onevision() -> Tiny:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT), vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[32, 32], [32, 64]], vision_feature_layer=-1,
    )  # fmt: skip
    return multimodal(LlavaOnevisionForConditionalGeneration, config)


MROPE = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 94, "vision_end_token_id": 93}


def qwen2_vl() -> Tiny:
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(text_config=MROPE, vision_config=vision, **TOKENS)
    return multimodal(Qwen2VLForConditionalGeneration, config, axes=3)


def qwen2_5_vl() -> Tiny:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
        "tokens_per_second": 4,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=MROPE, vision_config=vision, **TOKENS)
    return multimodal(Qwen2_5_VLForConditionalGeneration, config, axes=3, step=4)


TEXT_MODELS = [llama, qwen2, qwen3, yarn_llama]
MODELS = [*TEXT_MODELS, llava, llava_onevision, qwen2_vl, qwen2_5_vl]
