"""Check that loaded weights are complete, of the right shapes, and numbers; and compute a fingerprint of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch

from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.models import tower

SAMPLE = 8
"""Values of each tensor that its fingerprint looks at: training moves all of them, and few pages have to be read."""


def check_complete(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise MissingError where transformers' loading `info` says that the model is not, or not only, what the files hold.

    It fills what is missing with random numbers. Tied weights, and what an architecture does not need, it leaves out of its
    list by itself. Tensors that the model has no place for are no fault, unless they are blocks beyond its last one: then
    the configuration is another model's.
    """
    missing, others = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        total = max(len(missing), len(list(model.parameters())))
        foreign = f"; it holds {len(others)} of other names, first {others[0]}" if others else ""
        raise MissingError(
            f"model {name} lacks {len(missing)} of {total} tensors, first {missing[0]}{foreign}",
            "fetch or convert it again",
        )
    wrong = sorted(info["mismatched_keys"]) or sorted(_of_other_shapes(model))
    if wrong:
        key, found, wanted = wrong[0]
        raise MissingError(
            f"model {name}: {len(wrong)} tensors do not have the shapes of config.json, "
            f"first {key}: {_shape(found)} instead of {_shape(wanted)}",
            "fetch it again: config.json and weights are not of one model",
        )
    modules = {key for key, _ in model.named_modules()}
    for key in others:
        block = re.match(r"(.*\.)\d+(?=\.)", key)
        if block and block[0] not in modules and block[1] + "0" in modules:
            raise MissingError(
                f"model {name} has {block[0]}, a block more than its config.json says", "fetch config.json again"
            )


def _of_other_shapes(model: Any) -> list[tuple[str, torch.Size, torch.Size]]:
    """Return (name, found, wanted) of tensors of a model quantised on loading whose shape is not its architecture's.

    transformers compares shapes itself, but in 5.20, the last for Python 3.10, not beside a quantizer.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return []
    with torch.device("meta"):
        wanted = {key: tensor.shape for key, tensor in type(model)(model.config).state_dict().items()}
    found = {key: getattr(getattr(tensor, "quant_state", tensor), "shape", None) for key, tensor in model.named_parameters()}
    return [(key, shape, wanted[key]) for key, shape in found.items() if key in wanted and shape and shape != wanted[key]]


def not_finite(name: str, model: Any, kind: torch.dtype) -> EdgeError:
    """Return the error for a model that computes what is not a number: due to its weights, which are searched, or its dtype."""
    for key, tensor in model.state_dict().items():
        if not all(map(_finite, _parts(tensor))):
            return MissingError(f"model {name}: tensor {key} has values that are not finite numbers", "fetch it again")
    dtype = str(kind).removeprefix("torch.")
    if dtype != "float16":
        return MissingError(f"model {name} gives no finite numbers in {dtype}: its weights make no sense", "fetch it again")
    return UsageError(f"model {name} overflows in float16", "--dtype bfloat16 or float32")


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """Hash a sample of every tensor, wherever it lies and however it is stored; reads kilobytes.

    What is outside the language model is taken in bfloat16: the same weights are computed in either dtype on one processor
    or another (docs/models.md).
    """
    digest, either = hashlib.sha256(), {id(tensor) for tensor in tower.tensors(model)}
    for key, tensor in sorted(model.state_dict(keep_vars=True).items()):
        for part in _parts(tensor):
            values = part.reshape(-1)
            chosen = values[:: max(1, -(-len(values) // SAMPLE))]
            chosen = chosen.bfloat16() if id(tensor) in either else chosen
            digest.update(f"{key} {_shape(part.shape)}".encode())
            digest.update(chosen.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _parts(tensor: Any) -> list[torch.Tensor]:
    """Return the plain tensors of an entry of a state: torchao's weights are made of several."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]
    return [tensor] if torch.is_tensor(tensor) else []


def _finite(tensor: Any) -> bool:
    if not torch.is_tensor(tensor) or not tensor.is_floating_point() or tensor.itemsize == 1 or not tensor.numel():
        return True
    # The extremes of a tensor with NaN are NaN; unlike isfinite(), this takes no memory of the tensor's size.
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def _shape(sizes: Any) -> str:
    return " x ".join(map(str, sizes)) or "one number"
