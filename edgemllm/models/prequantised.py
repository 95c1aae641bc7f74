"""Checkpoints that others have quantised: which of them are read, with which packages, and as what they lie in memory."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgemllm.errors import UsageError
from edgemllm.models.quantisation import UNPACKED, method_of
from edgemllm.models.spec import ModelSpec

PACKAGES = {
    "bitsandbytes": ("bitsandbytes",), "awq": ("gptqmodel",), "gptq": ("optimum", "gptqmodel"), "torchao": ("torchao",),
    "compressed-tensors": ("compressed_tensors",), "fp8": (),
}  # fmt: skip
"""The methods that were tried, and the packages that transformers reads them with."""
PLAIN_KERNELS = {"awq": "torch_awq", "gptq": "gptq_torch"}
"""On a processor gptqmodel compiles kernels of its own for minutes; these are torch's."""


def check(name: str, config: Any) -> None:
    """Raise UsageError for a checkpoint in a method that was never tried here."""
    method = method_of(config)
    if method and method not in PACKAGES:
        known = ", ".join(PACKAGES)
        raise UsageError(
            f"model {name} is quantised with {method}, which was never tried here",
            f"a checkpoint in {known}, or one in 16 bits",
        )


def require_packages(name: str, config: Any) -> None:
    """Raise UsageError where the packages of a checkpoint's method are not installed."""
    method = method_of(config)
    needed = PACKAGES.get(method, ())
    if any(importlib.util.find_spec(package) is None for package in needed):
        raise UsageError(
            f"model {name} is quantised with {method}, and its package is not installed here",
            f"pip install {' '.join(needed).replace('_', '-')}, or an unquantised checkpoint with --quant nf4",
        )


def sized(spec: ModelSpec, config: Any, folder: Path) -> ModelSpec:
    """Return a checkpoint's sizes as it will lie in memory: its linear layers as they are stored, or unpacked."""
    method = method_of(config)
    if not method:
        return spec
    if method in UNPACKED:
        fixed = spec.other_text_parameters + spec.linear_parameters
        return replace(spec, linears=(), other_text_parameters=fixed)
    kind = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float16
    stored = sum(map(_tensor_bytes, folder.glob("*.safetensors")))
    return replace(spec, stored_bytes=max(0, stored - (spec.parameters - spec.linear_parameters) * kind.itemsize))


def _tensor_bytes(file: Path) -> int:
    """Return the bytes of a safetensors file without its header, whose length it begins with."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


@contextlib.contextmanager
def reading(config: Any, device: str) -> Iterator[dict[str, Any]]:
    """Yield what transformers is given besides, to read a checkpoint of this configuration.

    What is unpacked is unpacked while it is read: left to itself, compressed-tensors does so at the first token, in
    memory that nobody planned.
    """
    import transformers

    method, options = method_of(config), {}
    if method == "fp8":
        options["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    elif method == "compressed-tensors":
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    elif device == "cpu" and method in PLAIN_KERNELS:
        options["config"] = copy.deepcopy(config)
        options["config"].quantization_config["backend"] = PLAIN_KERNELS[method]
        torch.compiler.set_stance("force_eager")  # it compiles the unpacking of each weight, for minutes too
    quiet = contextlib.redirect_stdout(io.StringIO()) if method in PLAIN_KERNELS else contextlib.nullcontext()
    with quiet:  # gptqmodel writes its log where answers go
        yield options
