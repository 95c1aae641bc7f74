"""Write configs/facts.json: what planning has to know of every model that comes with edgemllm.

    python -m lab.facts

Run it after a change of `configs/models` or of what a family says about its pictures. Needs no weights: parameters are
counted on torch's meta device.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

from edgemllm.cache.size import LayerSpec
from edgemllm.device.profiles import configs_folder
from edgemllm.models import shipped
from edgemllm.models.loading import locate


def main() -> None:
    """Count and write, one model a line."""
    names = ["demo", *(f"{shipped.PREFIX}{name}" for name in shipped.names())]
    lines = [f"{json.dumps(name)}: {json.dumps(entry(name))}" for name in names]
    (configs_folder() / "facts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def entry(name: str) -> dict[str, Any]:
    """Return a model's spec, sizes and cache shape as JSON values."""
    facts = locate(name).facts()
    written = {part: dataclasses.asdict(getattr(facts, part)) for part in ("spec", "sizes", "shape")}
    written["shape"]["layers"] = [[len(list(run)), fields(layer)] for layer, run in itertools.groupby(facts.shape.layers)]
    return written


def fields(layer: LayerSpec) -> dict[str, object]:
    """Return what a layer's shape sets."""
    values = ((field, getattr(layer, field.name)) for field in dataclasses.fields(layer))
    return {field.name: value for field, value in values if value != field.default}


if __name__ == "__main__":
    main()
