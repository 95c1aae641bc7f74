"""What a model has outside its language model, vision tower, connector and learned separators, in a dtype of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def outside(model: Any) -> Iterator[nn.Module]:
    """Yield the modules that belong neither to the language model nor to its embeddings or output head."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    inside = {id(module) for part in parts if part is not None for module in part.modules()}
    yield from (module for module in model.modules() if id(module) not in inside)


def tensors(model: Any) -> Iterator[Tensor]:
    """Yield what a checkpoint holds of these modules in floating point.

    Buffers that they compute, such as frequencies of rotation, are left out: transformers' own loading leaves them as they are.
    """
    for module in outside(model):
        held = {**module._parameters, **module._buffers}
        saved = (tensor for name, tensor in held.items() if name not in module._non_persistent_buffers_set)
        yield from (tensor for tensor in saved if tensor is not None and tensor.is_floating_point())


def cast(model: Any, dtype: torch.dtype) -> None:
    """Round these tensors to `dtype`, one after the other."""
    for tensor in tensors(model):
        tensor.data = tensor.data.to(dtype)
