"""From a GGUF file's tensors to a model's weights, some rows at a time: never a whole model, nor a whole table, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemllm.device.heap import trimmed
from edgemllm.errors import MissingError
from edgemllm.models.assembly import assemble, on_meta
from edgemllm.models.gguf.header import ELSEWHERE, Header, TensorInfo

SLICE = 1 << 14
"""Values that are unpacked at once: what numpy makes of them on the way is small beside any matrix."""
TRIMMED = 32
"""Slices after which the heap is trimmed."""

ROPE = "rope_freqs.weight"
"""The one tensor that is no parameter: divisors of the rotation's frequencies, of Llama from 3.1 on."""


def load(name: str, header: Header, auto: Any, config: Any, quant: str, dtype: torch.dtype, device: str, attention: Any) -> Any:
    """Make the model of a file. Raises MissingError, before anything large is allocated, where the two do not match.

    auto: the transformers class, such as AutoModelForCausalLM.
    """
    model = on_meta(auto, config, dtype, attention)
    sources = _sources(name, header, model)
    named = {id(module): prefix for prefix, module in model.named_modules()}

    def fill(module: nn.Module, initialise: Callable[[nn.Module], None]) -> None:
        if module._buffers:  # none is in the file
            initialise(module)
        for key, parameter in module._parameters.items():
            info = sources.get(".".join(filter(None, (named[id(module)], key))))
            if parameter is not None and info is not None:  # None: it is tied to another one
                with torch.no_grad():
                    _read(name, header, info, parameter)

    model = assemble(model, quant, dtype, device, fill)
    _divide_frequencies(name, header, model)
    return model


def _sources(name: str, header: Header, model: Any) -> dict[str, TensorInfo]:
    """The tensor of every parameter. Raises MissingError for one that is absent, left over or of another shape."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == header.architecture)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    wanted = {key: names.get_name(key, (".weight", ".bias")) for key, _ in model.named_parameters()}
    found, table = {key: header.tensors.get(theirs or "") for key, theirs in wanted.items()}, set(header.tensors) - {ROPE}
    if missing := [wanted[key] or key for key, info in found.items() if info is None]:
        raise MissingError(
            f"model {name} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}", "fetch or convert it again"
        )
    if others := sorted(table - set(wanted.values())):
        raise MissingError(
            f"model {name} has {len(others)} tensors for which {header.architecture} has no place, first {others[0]}",
            ELSEWHERE,
        )
    sources = {key: info for key, info in found.items() if info is not None}
    for key, parameter in model.named_parameters():
        if tuple(parameter.shape) != sources[key].shape:
            shapes = (" x ".join(map(str, shape)) for shape in (sources[key].shape, parameter.shape))
            raise MissingError(
                f"model {name}: tensor {wanted[key]} is {' instead of '.join(shapes)}, as its metadata says", "convert it again"
            )
    return sources


def _read(name: str, header: Header, info: TensorInfo, target: Tensor) -> None:
    """Unpack a tensor into `target`. Raises MissingError where it cannot be, or where a matrix has nothing but zeros."""
    from gguf import dequantize

    height = math.prod(info.shape[:-1]) if len(info.shape) > 1 else 1
    rows = _rows(header, info, height)
    flat, width = target.view(height, -1), info.size // height
    step = max(1, SLICE // flat.shape[1])
    anything = len(info.shape) == 1
    with header.path.open("rb") as file:
        file.seek(info.offset)
        for start in trimmed(range(0, height, step), TRIMMED):
            count = min(step, height - start)
            raw = np.fromfile(file, np.uint8, count * width)
            try:
                values = dequantize(raw.reshape(count, width), info.kind)
            except (NotImplementedError, ValueError) as error:
                raise MissingError(
                    f"model {name}: tensor {info.name} cannot be read as {info.kind.name}: {error}", "fetch it again"
                ) from error
            anything = anything or bool(values.any())
            values -= _raised(header, info)
            here = slice(start, start + count)
            if rows is None:
                flat[here] = torch.from_numpy(values)
            else:
                flat[rows[here].to(flat.device)] = torch.from_numpy(values).to(flat.device, flat.dtype)
    if not anything:
        raise MissingError(f"model {name} has nothing but zeros in tensor {info.name}", "fetch it again: it was not completed")


def _rows(header: Header, info: TensorInfo, height: int) -> Tensor | None:
    """Where each row of a tensor goes, if not where it is in the file.

    llama.cpp rotates neighbouring channels, transformers those half a head apart.
    """
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(info.name.split(".")[-2])
    if header.architecture != "llama" or heads is None or height == 1:
        return None
    number = int(header.own(f"attention.{heads}", header.own("attention.head_count")))
    return torch.arange(height).view(number, 2, -1).transpose(1, 2).reshape(-1)


def _raised(header: Header, info: TensorInfo) -> int:
    """What llama.cpp's conversion adds: Gemma's norms multiply by 1 + weight, and the file has the sum."""
    return int(header.architecture == "gemma3" and info.name.endswith("norm.weight"))


@torch.no_grad()
def _divide_frequencies(name: str, header: Header, model: Any) -> None:
    """Rotate as Llama 3.1 does, whose scaled frequencies are in the file as divisors."""
    info = header.tensors.get(ROPE)
    if info is None:
        return
    rotary = model.base_model.rotary_emb
    if header.architecture != "llama" or info.shape != tuple(rotary.inv_freq.shape):
        raise MissingError(f"model {name} has divisors of another rotation in {ROPE}", ELSEWHERE)
    divisors = torch.empty(info.shape)
    _read(name, header, info, divisors)
    rotary.inv_freq.div_(divisors.to(rotary.inv_freq.device))
    rotary.original_inv_freq.copy_(rotary.inv_freq)
