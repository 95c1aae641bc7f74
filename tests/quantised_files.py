"""Checkpoints as others quantise them, written by hand from a plain one: rounded to the nearest step, nothing calibrated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Parts = dict[str, Tensor]


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in) from 0 to 15, scales (out, groups) and zero points of groups of a row."""
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    codes = (groups / scales + zeros).round().clamp(0, 15)
    return codes.view_as(weight).int(), scales[..., 0], zeros[..., 0].int()


def packed(values: Tensor, dim: int, order: Iterable[int] = range(8)) -> Tensor:
    """Eight values of four bits along `dim` in each int32."""
    eights = values.movedim(dim, -1).unflatten(-1, (-1, 8)).int()
    shifted = [eights[..., index] << 4 * place for place, index in enumerate(order)]
    return torch.stack(shifted).sum(0).int().movedim(-1, dim).contiguous()


def gptq(weight: Tensor) -> Parts:
    codes, scales, zeros = four_bits(weight)
    groups = (torch.arange(weight.shape[1]) // GROUP).int()
    shared = {"scales": scales.T.half().contiguous(), "g_idx": groups}
    return {"qweight": packed(codes.T, 0), "qzeros": packed(zeros.T - 1, 1), **shared}


def awq(weight: Tensor) -> Parts:
    codes, scales, zeros = four_bits(weight)
    integers = {"qweight": packed(codes.T, 1, AWQ_ORDER), "qzeros": packed(zeros.T, 1, AWQ_ORDER)}
    return {**integers, "scales": scales.T.half().contiguous()}


def fp8(weight: Tensor) -> Parts:
    """Blocks of 32 x 32 that share a scale."""
    rows, columns = weight.shape
    blocks = weight.float().view(rows // 32, 32, columns // 32, 32)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    return {"weight": (blocks / scales).view(rows, columns).to(torch.float8_e4m3fn), "weight_scale_inv": scales[:, 0, :, 0]}


def compressed(weight: Tensor) -> Parts:
    """Eight bits and a scale for a row."""
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight.float() / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scales}


def _scheme(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}


METHODS: dict[str, tuple[Callable[[Tensor], Parts], dict[str, Any]]] = {
    "gptq": (gptq, {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, "checkpoint_format": "gptq"}),
    "awq": (awq, {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "fp8": (fp8, {"activation_scheme": "dynamic", "weight_block_size": [32, 32]}),
    "compressed-tensors": (
        compressed,
        {
            "format": "int-quantized", "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": _scheme(8), "input_activations": None}},
        },
    ),
}  # fmt: skip
SKIPPED = {"awq": "modules_to_not_convert", "fp8": "modules_to_not_convert", "compressed-tensors": "ignore"}
"""What a method calls the modules it leaves alone; GPTQ has no such list."""


def quantise(plain: Path, folder: Path, method: str, untouched: list[str]) -> None:
    """Write the checkpoint in `plain` to `folder`, its language model's linear layers quantised with `method`."""
    shutil.copytree(plain, folder)
    parts, recipe = METHODS[method]
    found: Parts = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and not any(part in name for part in ("vision", "projector")):
            found |= {f"{module}.{key}": value.contiguous() for key, value in parts(tensor).items()}
        else:
            found[name] = tensor
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    config = json.loads(file.read_text())
    skipped = {SKIPPED[method]: untouched} if method in SKIPPED else {}
    config["quantization_config"] = {"quant_method": method, **skipped, **recipe}
    file.write_text(json.dumps(config))
