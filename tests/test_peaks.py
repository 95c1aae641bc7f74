"""What `plan` allows for a frame or a chunk is never less than what it takes, counted tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXT, Tiny, alternating, llama, random_ids
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from edgemllm import policies
from edgemllm.cache.attention import NAME, forward
from edgemllm.models.spec import ModelSpec
from edgemllm.planning.peaks import activation_bytes, vision_bytes

CONFIGS = Path(__file__).parents[1] / "configs" / "models"
LAYERS = 2


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, those of the model and of `there` left out."""

    def __init__(self, model: Any, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.own = {part.untyped_storage()._cdata for part in (*model.parameters(), *model.buffers(), *there)}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.own:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return out


def shallow(name: str) -> Any:
    """A shipped configuration with the real tower's width, but few layers and next to no language model."""
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    vision, text = content["vision_config"], content["text_config"]
    vision["depth" if "depth" in vision else "num_hidden_layers"] = LAYERS
    for key in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if key in vision:
            vision[key] = list(range(LAYERS))
    text |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 200}
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:1]
    return AutoConfig.for_model(**{key: value for key, value in content.items() if key not in ("_name_or_path", "parameters")})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen3-vl-2b", "llava-onevision-7b", "internvl3-2b", "smolvlm2-0.5b"])
def test_encoding_a_frame_takes_what_the_plan_allows(name: str) -> None:
    config = shallow(name)
    vision = ModelSpec.from_config(config).vision
    assert vision is not None
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad(), Peak(model) as peak:
        if "qwen" in name:
            vision = dataclasses.replace(vision, patches=28 * 28)
            flat = torch.randn(vision.patches, vision.patch_values)
            model.model.visual(flat.to(torch.bfloat16), grid_thw=torch.tensor([[1, 28, 28]]))
        else:
            size = config.vision_config.image_size
            side = size if isinstance(size, int) else size[0]
            frame = torch.randn(1, 3, side, side)
            one = frame.to(torch.bfloat16)
            if name.startswith("llava"):
                model.model.get_video_features(one[None], return_dict=True)
            else:
                model.model.get_image_features(one[None] if name.startswith("smolvlm") else one, return_dict=True)
    allowed = vision_bytes(vision, config.text_config.hidden_size, "bfloat16")
    assert peak.bytes <= allowed <= 4 * peak.bytes


def grouped(heads: int, kv_heads: int) -> Tiny:
    """A text model of two layers with heads of 64."""
    shape = {"hidden_size": heads * 64, "intermediate_size": heads * 128, "num_hidden_layers": 2}
    config = LlamaConfig(**{**TEXT, **shape, "num_attention_heads": heads, "num_key_value_heads": kv_heads})
    tiny = llama()
    tiny.model = tiny.family.model = LlamaForCausalLM(config).eval()
    return tiny


STEPS = [
    (name, *heads, dtype)
    for number, name in enumerate(policies.names())
    for heads, dtype in zip([(12, 2), (8, 8)], alternating([torch.float32, torch.bfloat16], number), strict=True)
]
"""Every policy with both shapes of heads and both dtypes, but not all combinations of them."""


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize(("name", "heads", "kv_heads", "dtype"), STEPS)
def test_a_step_of_prefill_takes_what_the_plan_allows(name: str, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    """With a full cache, compaction included."""
    tiny, policy = grouped(heads, kv_heads).use(NAME), policies.build(name)
    tiny.model.to(dtype)
    for budget, chunk in ((1024, 16), (512, 256)):  # the first is what the plan is tightest for
        cache = tiny.new_cache(policy, [budget if policy.bounded else None] * 2, chunk)
        *before, last = tiny.text_chunk(random_ids(budget + 2 * chunk)).split(chunk)
        for part in before:
            forward(tiny.text, cache, part)
        there = [tensor for layer in cache.layers for tensor in layer.slots.tensors.values()]
        there += [layer.queries for layer in cache.layers if layer.queries is not None]
        with Peak(tiny.model, there) as peak:
            forward(tiny.text, cache, last)
        spec = ModelSpec.from_config(tiny.model.config)
        allowed = activation_bytes(
            spec, "none", str(dtype).removeprefix("torch."), chunk, cache.layers[0].length, policy.scratch
        )
        assert peak.bytes <= allowed, f"chunks of {chunk}: {peak.bytes / allowed:.2f}"
