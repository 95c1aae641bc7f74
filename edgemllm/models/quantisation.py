"""Which quantisation a model has, and weights in 8 or 4 bits: the language model's, never those of the vision tower.

On a processor int8 and int4 are torch's packed weights (packed.py). Everything else goes through bitsandbytes, which leaves the
output head as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edgemllm.choices import packs
from edgemllm.device.heap import trimmed
from edgemllm.errors import UsageError
from edgemllm.models import packed
from edgemllm.models.spec import ModelSpec

BLOCK = 64
"""Values that share a scale in nf4."""
SLICE = 1 << 16
"""Values that are quantised at once: whole blocks."""
TRIMMED = 4
"""Slices after which the heap is trimmed."""
UNPACKED = ("fp8", "compressed-tensors")
"""Methods of ready-made checkpoints whose weights are unpacked while they are read: in memory they are not quantised."""
NF4 = {"quant_type": "nf4", "compress_statistics": True}


def quantisation_of(model: Any) -> str:
    """Return what the loaded modules really are: nf4, int8, int4, a ready-made method such as awq, or none."""
    kinds = {type(module).__name__ for module in model.modules()}
    if "Int4Linear" in kinds:
        return "int4"
    if "Linear4bit" in kinds:
        return "nf4"
    if kinds & {"Linear8bitLt", "Int8Linear"}:
        return "int8"
    return method_of(model.config) or "none"


def method_of(config: Any) -> str:
    """Return how a checkpoint was quantised before it got here: awq, gptq, bitsandbytes ...; empty for not at all."""
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "")


def stored_as(config: Any) -> str:
    """Return what a ready-made checkpoint is in memory: nf4 or int8 of bitsandbytes, its method, or nothing."""
    method = method_of(config)
    if method != "bitsandbytes":
        return "" if method in UNPACKED else method
    found = config.quantization_config
    four = found.get("load_in_4bit") if isinstance(found, dict) else found.load_in_4bit
    return "nf4" if four else "int8"


def require_bitsandbytes(quant: str, device: str) -> None:
    """Raise UsageError where it is needed and not installed."""
    if quant == "none" or packs(quant, device):
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--quant {quant} needs bitsandbytes, which is not installed",
            "pip install 'edgemllm[quant]', or --quant none" + (", int8 or int4" if device == "cpu" else ""),
        ) from error


def recipe(quant: str, dtype: torch.dtype, config: Any) -> Any:
    """Return what transformers needs to quantise with bitsandbytes while it reads."""
    from transformers import BitsAndBytesConfig

    untouched = list(ModelSpec.from_config(config).not_quantised)
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=untouched)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=untouched,
    )


def without_cpu_repacking(model: Any) -> Any:
    """Keep the model's 4-bit layers from repacking their weights at the first token, as they do where there is AVX512-BF16.

    There bitsandbytes (0.50) would compute in bfloat16 whatever the dtype, take eight times a layer's bytes while it repacks,
    and fail for widths that 64 does not divide. So every processor gives the same answers, in the memory that was planned.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantised(linear: nn.Linear, quant: str, dtype: torch.dtype) -> nn.Module:
    """Return one linear layer in `quant`, on its device; the full weight is dropped."""
    device, weight = linear.weight.device, linear.weight.data
    if packs(quant, device.type):
        return packed.packed(linear, quant)
    import bitsandbytes as bnb

    rows, columns, bias = linear.out_features, linear.in_features, linear.bias
    made: nn.Module
    with torch.device("meta"):
        if quant == "nf4":
            made = bnb.nn.Linear4bit(columns, rows, bias is not None, compute_dtype=dtype, **NF4)
        else:
            made = bnb.nn.Linear8bitLt(columns, rows, bias is not None, has_fp16_weights=False)
    if quant == "nf4":
        made.weight = _nf4(weight, made)
    else:
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    made.bias = bias
    return made


@torch.no_grad()
def _nf4(weight: torch.Tensor, module: nn.Module) -> nn.Parameter:
    """Quantise a weight as bitsandbytes would at once, to the same values: on a CPU it takes 18 bytes a value on the way."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    parts: Iterable[torch.Tensor] = weight.reshape(-1).split(SLICE)
    if weight.device.type == "cpu":
        parts = trimmed(parts, TRIMMED)
    slices = [functional.quantize_4bit(part, quant_type="nf4", blocksize=BLOCK) for part in parts]
    packed, states = zip(*slices, strict=True)
    scales = torch.cat([state.absmax for state in states])
    offset = scales.mean()
    absmax, nested = functional.quantize_blockwise(scales - offset, blocksize=256)
    module.quant_state = functional.QuantState(
        absmax=absmax, shape=weight.shape, dtype=weight.dtype, blocksize=BLOCK, code=states[0].code, quant_type="nf4",
        offset=offset, state2=nested,
    )  # fmt: skip
    options = {"quant_state": module.quant_state, "bnb_quantized": True, "blocksize": BLOCK, "module": module}
    made: nn.Parameter = Params4bit(torch.cat(packed), requires_grad=False, **options, **NF4)
    return made
