"""Tiny random models of the real configuration classes, behind their families, and the stock logits they give."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.chunk import Chunk
from edgemllm.cache.kv_cache import KVCache
from edgemllm.errors import UsageError
from edgemllm.media.detail import Detail
from edgemllm.models.families import family_of
from edgemllm.models.families.base import ModelFamily

VOCABULARY, IMAGE, VIDEO, VISION_START, VISION_END, END = 97, 96, 95, 94, 93, 92
SPECIAL = {
    "<image>": IMAGE, "<video>": VIDEO, "<vision>": VISION_START, "</vision>": VISION_END, "<end>": END,
    "<img>": 91, "</img>": 90, "<fake_token_around_image>": 89, "<global-img>": 88, "<slice>": 87, "</slice>": 86,
}  # fmt: skip
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": END,
}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}WRAPPED{% endif %}"
    "{% endfor %}{% endif %}<end>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(wrapped: str = "<' ~ part.type ~ '>") -> Any:
    """One token a character, and the special ones of `SPECIAL`."""
    letters = string.ascii_letters + string.digits + " \n.,:?<>_"
    vocabulary = {letter: number for number, letter in enumerate(letters)} | SPECIAL
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    fast.chat_template = TEMPLATE.replace("WRAPPED", "{{ '" + wrapped + "' }}")
    return fast


class Tiny(SimpleNamespace):
    """A stock model and its family."""

    model: Any
    family: ModelFamily

    @property
    def text(self) -> Any:
        return self.family.text_model

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
        """Logits of all tokens through our cache, in chunks: of one picture at least where its tokens come together."""
        self.use(NAME)
        size = max(size, self.family.sizes(self.model.config).indivisible)
        self.cache = self.new_cache(policy, budgets, size)
        hidden = [forward(self.text, self.cache, part) for part in chunk.split(size)]
        return self.family.logits(torch.cat(hidden, 1))

    def new_cache(self, policy: Any, budgets: list[int | None] | int | None = None, size: int | None = None) -> KVCache:
        if not isinstance(budgets, list):
            return self.family.new_cache(policy, budgets, size or 100)
        return KVCache(policy, self.family.rope, budgets, chunk=size or 1)

    def text_chunk(self, ids: Tensor, offset: int = 0) -> Chunk:
        return self.family.text(ids[0].tolist(), offset)


def random_ids(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 90, (1, count), generator=torch.Generator().manual_seed(seed))


def tiny(cls: Any, config: Any, wrapped: str = "<' ~ part.type ~ '>", **more: Any) -> Tiny:
    torch.manual_seed(0)
    kind = family_of(config.model_type)
    try:
        kind.check(config)
    except UsageError as error:  # an older transformers
        pytest.skip(str(error))
    model = cls(config).eval()
    return Tiny(model=model, family=kind(model, tokenizer(wrapped), **more))


def llama() -> Tiny:
    return tiny(LlamaForCausalLM, LlamaConfig(**TEXT))


def qwen2() -> Tiny:
    return tiny(Qwen2ForCausalLM, Qwen2Config(**TEXT))


def qwen3() -> Tiny:
    return tiny(Qwen3ForCausalLM, Qwen3Config(**TEXT, head_dim=16))


def yarn_llama() -> Tiny:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128}
    return tiny(LlamaForCausalLM, LlamaConfig(**TEXT, rope_parameters=rope))


def mistral() -> Tiny:
    """Every layer slides."""
    return tiny(MistralForCausalLM, MistralConfig(**TEXT, sliding_window=16))


def qwen2_sliding() -> Tiny:
    """The last layer slides."""
    return tiny(Qwen2ForCausalLM, Qwen2Config(**TEXT, use_sliding_window=True, sliding_window=16, max_window_layers=2))


def phi3() -> Tiny:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return tiny(Phi3ForCausalLM, Phi3Config(**TEXT, rope_parameters=rope))


def gpt_neox() -> Tiny:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    return tiny(GPTNeoXForCausalLM, GPTNeoXConfig(**config, rope_parameters=rope))


CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def llava() -> Tiny:
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**CLIP), image_token_id=IMAGE)
    return tiny(LlavaForConditionalGeneration, config)


def llava_next() -> Tiny:
    config = LlavaNextConfig(
        text_config=MistralConfig(**TEXT, sliding_window=None), vision_config=CLIPVisionConfig(**CLIP), image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return tiny(LlavaNextForConditionalGeneration, config)


def llava_next_video() -> Tiny:
    config = LlavaNextVideoConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**CLIP), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return tiny(LlavaNextVideoForConditionalGeneration, config)


def llava_onevision() -> Tiny:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT), vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[32, 32], [32, 64]], vision_feature_layer=-1,
    )  # fmt: skip
    return tiny(LlavaOnevisionForConditionalGeneration, config)


MROPE = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
}  # fmt: skip
PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
WRAPPED = "<vision><' ~ part.type ~ '></vision>"
FEW = Detail(tokens_per_frame=6)


def qwen2_vl() -> Tiny:
    vision = {**PATCHES, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=MROPE, vision_config=vision, **TOKENS)
    return tiny(Qwen2VLForConditionalGeneration, config, WRAPPED, detail=FEW)


def qwen2_5_vl() -> Tiny:
    vision = {
        **PATCHES, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 16,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=MROPE, vision_config=vision, **TOKENS)
    return tiny(Qwen2_5_VLForConditionalGeneration, config, WRAPPED, detail=FEW)


def qwen3_vl() -> Tiny:
    vision = {
        **PATCHES, "depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {**TEXT, "head_dim": 16, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS)
    return tiny(Qwen3VLForConditionalGeneration, config, WRAPPED, detail=FEW)


DELTA = {
    **TEXT, "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def qwen3_5_text() -> Tiny:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return tiny(Qwen3_5ForCausalLM, Qwen3_5TextConfig(**DELTA))


def qwen3_5_moe_text() -> Tiny:
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    return tiny(Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig(**DELTA, **EXPERTS))


TOWER = {
    **PATCHES, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 36,
}  # fmt: skip


def qwen3_5() -> Tiny:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(text_config=DELTA, vision_config=TOWER, **TOKENS)
    return tiny(Qwen3_5ForConditionalGeneration, config, WRAPPED, detail=FEW)


def qwen3_5_moe() -> Tiny:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    config = Qwen3_5MoeConfig(text_config={**DELTA, **EXPERTS}, vision_config=TOWER, **TOKENS)
    return tiny(Qwen3_5MoeForConditionalGeneration, config, WRAPPED, detail=FEW)


def smollm3() -> Tiny:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    return tiny(SmolLM3ForCausalLM, SmolLM3Config(**TEXT, no_rope_layers=[1, 0, 1]))


SHORT = {**TEXT, "num_hidden_layers": 4, "conv_L_cache": 3}


def lfm2() -> Tiny:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return tiny(Lfm2ForCausalLM, Lfm2Config(**SHORT, layer_types=["conv", "full_attention", "conv", "full_attention"]))


LFM3 = {
    **SHORT, "head_dim": 16, "sliding_window": 12,
    "layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"],
}  # fmt: skip


def lfm3() -> Tiny:
    transformers = pytest.importorskip("transformers", "5.23")
    return tiny(transformers.Lfm3ForCausalLM, transformers.Lfm3Config(**LFM3))


def _minicpmv(version: str) -> Tiny:
    transformers = pytest.importorskip("transformers", "5.21")
    vision = {**SQUARE, "image_size": 64, "insert_layer_id": 0, "num_hidden_layers": 2}
    ends = {"image_start_id": 91, "image_end_id": 90, "slice_start_id": 87, "slice_end_id": 86, "newline_id": 63}
    config = getattr(transformers, f"MiniCPMV4_{version}Config")(
        text_config={**DELTA, "model_type": "qwen3_5_text"}, vision_config=vision, insert_layer_id=0, image_size=16,
        image_token_id=IMAGE, video_token_id=VIDEO, **(ends if version == "7" else {}),
    )  # fmt: skip
    made: Any = tiny(getattr(transformers, f"MiniCPMV4_{version}ForConditionalGeneration"), config)
    made.family.image_spec = made.family.video_spec = type(made.family.image_spec)(patch_size=4, scale_resolution=24)
    return made


def minicpmv4_6() -> Tiny:
    return _minicpmv("6")


def minicpmv4_7() -> Tiny:
    return _minicpmv("7")


def lfm2_vl() -> Tiny:
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    vision = {**SQUARE, "num_patches": 36, "vision_use_head": False, "model_type": "siglip2_vision_model"}
    vision.pop("image_size")
    text = {**SHORT, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "model_type": "lfm2"}
    config = Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, projector_hidden_size=48)
    made: Any = tiny(Lfm2VlForConditionalGeneration, config)
    made.family.image_spec = replace(made.family.image_spec, least_tokens=2, most_tokens=6, side=16, tolerance=1.5)
    made.processor = {
        "encoder_patch_size": 4, "min_image_tokens": 2, "max_image_tokens": 6, "tile_size": 16, "max_pixels_tolerance": 1.5,
    }  # fmt: skip
    return made


def lfm3_vl() -> Tiny:
    transformers = pytest.importorskip("transformers", "5.23")
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "patch_size": 4, "layer_types": ["conv", "full_attention", "conv"],
    }  # fmt: skip
    config = transformers.Lfm3VlConfig(
        text_config={**LFM3, "model_type": "lfm3"}, vision_config=vision, projector_hidden_size=48, **TOKENS
    )
    return tiny(transformers.Lfm3VlForConditionalGeneration, config, WRAPPED, detail=FEW)


def cosmos3_edge() -> Tiny:
    from transformers import Cosmos3EdgeConfig, Cosmos3EdgeForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    vision = {**SQUARE, "num_patches": 36, "spatial_merge_size": 2}
    vision.pop("image_size")
    text = {**TEXT, "head_dim": 16, "rope_parameters": rope}
    config = Cosmos3EdgeConfig(text_config=text, vision_config=vision, projector_hidden_size=48, **TOKENS)
    return tiny(Cosmos3EdgeForConditionalGeneration, config, WRAPPED, detail=FEW)


def internvl() -> Tiny:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 4,
    }  # fmt: skip
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT),
        vision_config=vision,
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return tiny(InternVLForConditionalGeneration, config)


SQUARE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


def idefics3() -> Tiny:
    config = Idefics3Config(text_config=LlamaConfig(**TEXT), vision_config=SQUARE, image_token_id=IMAGE, scale_factor=2)
    return tiny(Idefics3ForConditionalGeneration, config)


def smolvlm() -> Tiny:
    config = SmolVLMConfig(text_config=LlamaConfig(**TEXT), vision_config=SQUARE, image_token_id=IMAGE, scale_factor=2)
    return tiny(SmolVLMForConditionalGeneration, config)


LOCAL = {**TEXT, "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def gemma3_text() -> Tiny:
    config = Gemma3TextConfig(**LOCAL, layer_types=LAYERS, final_logit_softcapping=5.0)
    return tiny(Gemma3ForCausalLM, config)


def gemma3() -> Tiny:
    config = Gemma3Config(
        text_config={**LOCAL, "layer_types": LAYERS}, vision_config={**SQUARE, "vision_use_head": False},
        image_token_index=IMAGE, boi_token_index=91, eoi_token_index=90, mm_tokens_per_image=4,
    )  # fmt: skip
    made = tiny(Gemma3ForConditionalGeneration, config, "<img>")
    torch.nn.init.normal_(made.model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # else all zero
    return made


SHARING = {
    **TEXT, "num_hidden_layers": 5, "head_dim": 16, "global_head_dim": 32, "sliding_window": 12, "pad_token_id": 0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCABULARY, "final_logit_softcapping": 5.0,
}  # fmt: skip
LARGE = {
    **SHARING, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision", "sliding_window": 3,
}  # fmt: skip
EXPERT_BLOCK = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
SIGHT = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": 91, "eoi_token_id": 90, "audio_config": None,
    "vision_soft_tokens_per_image": 6,
}  # fmt: skip
POOLED = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "patch_size": 4, "position_embedding_size": 32,
}  # fmt: skip


def gemma4_text() -> Tiny:
    """The last two layers read the keys of the second and third."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    return tiny(Gemma4ForCausalLM, Gemma4TextConfig(**SHARING))


def gemma4_unified_text() -> Tiny:
    from transformers import Gemma4UnifiedForCausalLM, Gemma4UnifiedTextConfig

    return tiny(Gemma4UnifiedForCausalLM, Gemma4UnifiedTextConfig(**LARGE))


def gemma4() -> Tiny:
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    config = Gemma4Config(text_config=SHARING, vision_config=POOLED, **SIGHT)
    return tiny(Gemma4ForConditionalGeneration, config)


def gemma4_large() -> Tiny:
    """Experts, values that are keys, no per-layer embeddings, and pictures that see themselves both ways in local layers."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    config = Gemma4Config(text_config={**LARGE, **EXPERT_BLOCK}, vision_config={**POOLED, "standardize": True}, **SIGHT)
    return tiny(Gemma4ForConditionalGeneration, config)


def gemma4_unified() -> Tiny:
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    vision = {"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32}
    config = Gemma4UnifiedConfig(text_config=LARGE, vision_config=vision, **SIGHT)
    made = tiny(Gemma4UnifiedForConditionalGeneration, config)
    torch.nn.init.normal_(made.model.model.embed_vision.pos_embedding)  # else all zero
    return made


TEXT_MODELS = [
    gemma3_text, llama, qwen2, qwen3, yarn_llama, mistral, qwen2_sliding, phi3, gpt_neox, qwen3_5_text, qwen3_5_moe_text,
    smollm3, lfm2, lfm3, gemma4_text, gemma4_unified_text,
]  # fmt: skip
VISION_MODELS = [
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    qwen3_5,
    qwen3_5_moe,
    lfm2_vl,
    lfm3_vl,
    cosmos3_edge,
    minicpmv4_6,
    minicpmv4_7,
    internvl,
    idefics3,
    smolvlm,
    gemma3,
    gemma4,
    gemma4_large,
    gemma4_unified,
]
MODELS = [*TEXT_MODELS, *VISION_MODELS]


def alternating(choices: Sequence[Any], number: int) -> list[Any]:
    """The choices, beginning with the one whose turn it is: to pair them with others where all combinations prove no more."""
    first = number % len(choices)
    return [*choices[first:], *choices[:first]]
