"""Parameter counts and weight bytes from a configuration equal those of the model that is then really loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from edgemllm.errors import UsageError
from edgemllm.models.spec import ModelSpec

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def real_bytes(model: torch.nn.Module) -> int:
    """What the loaded weights really take, the statistics of quantised ones included."""
    total = 0
    for parameter in {id(each): each for each in model.parameters()}.values():
        tensors = [parameter.data]
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        if getattr(parameter, "SCB", None) is not None:
            tensors.append(parameter.SCB)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def quantised(auto: Any, config: Any, quant: str, folder: Path) -> torch.nn.Module:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    options: dict[str, Any] = {"llm_int8_skip_modules": list(ModelSpec.from_config(config).not_quantised)}
    if quant == "nf4":
        options |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options |= {"bnb_4bit_compute_dtype": torch.bfloat16}
    else:
        options |= {"load_in_8bit": True}
    how = BitsAndBytesConfig(**options)
    return auto.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16, device_map={"": "cpu"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_the_real_ones(tied: bool, dtype: str) -> None:
    config = Qwen2Config(**TEXT, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    assert ModelSpec.from_config(config).weights_bytes("none", dtype) == real_bytes(model)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantised_text_weights_are_the_real_ones(quant: str, tmp_path: Path) -> None:
    config = Qwen2Config(**TEXT, tie_word_embeddings=False)
    model = quantised(AutoModelForCausalLM, config, quant, tmp_path)
    assert ModelSpec.from_config(config).weights_bytes(quant, "bfloat16") == real_bytes(model)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantised_vision_language_weights_are_the_real_ones(quant: str, tmp_path: Path) -> None:
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT}, vision_config=vision, image_grid_pinpoints=[[32, 32]]
    )
    spec = ModelSpec.from_config(config)
    assert spec.not_quantised[:2] == ("model.vision_tower", "model.multi_modal_projector")
    model = quantised(AutoModelForImageTextToText, config, quant, tmp_path)
    small = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert len(small) == sum(shape.count for shape in spec.linears) == 3 * 7
    assert all("language_model.layers" in name for name in small)
    assert spec.weights_bytes(quant, "bfloat16") == real_bytes(model)


def test_model_that_cannot_be_planned_for() -> None:
    with pytest.raises(UsageError, match="siglip_vision_model"):
        ModelSpec.from_config(SiglipVisionConfig(**VISION))
