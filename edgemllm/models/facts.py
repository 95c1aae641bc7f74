"""What planning has to know of a model, and the record of it for the models that come with edgemllm.

Counting parameters takes the model's own classes, which take torch and seconds to import. So the counts of every shipped
model are kept in `configs/facts.json`, written by `python -m lab.facts`, which a test compares with what they are.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from edgemllm.cache.size import CacheSpec, LayerSpec
from edgemllm.device.profiles import configs_folder
from edgemllm.models.spec import LinearShape, ModelSpec, Sizes, VisionSpec


@dataclass(frozen=True)
class ModelFacts:
    """The sizes of a model's weights, pictures and cache."""

    spec: ModelSpec
    sizes: Sizes
    """What its pictures take at the detail that was asked for."""

    shape: CacheSpec
    """Of its KV cache at 2 bytes a number; planning puts in those of the dtype."""

    prequantised_with: str = ""
    """The method it was quantised with beforehand, or nothing."""

    stored_as: str = ""
    """Its quantisation as `--quant` and our JSON name it, or nothing."""

    converted: bool = False
    """Whether loading converts its weights in the host's memory, as it does those of a GGUF file."""


def recorded(name: str) -> ModelFacts | None:
    """Return the facts of `demo` or `random:NAME` at full detail, without importing torch; None for any other model."""
    found = _file().get(name)
    if found is None:
        return None
    spec, shape = found["spec"], found["shape"]
    shapes = {part: tuple(LinearShape(**each) for each in spec[part]) for part in ("linears", "lookups")}
    vision = None if spec["vision"] is None else VisionSpec(**spec["vision"])
    whole = {**spec, **shapes, "vision": vision, "not_quantised": tuple(spec["not_quantised"])}
    layers = tuple(LayerSpec(**layer) for count, layer in shape["layers"] for _ in range(count))
    return ModelFacts(ModelSpec(**whole), Sizes(**found["sizes"]), CacheSpec(**{**shape, "layers": layers}))


@functools.cache
def _file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((configs_folder() / "facts.json").read_text(encoding="utf-8"))
    return found
