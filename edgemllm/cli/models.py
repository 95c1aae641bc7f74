"""`edgemllm models`: what there is to load, what is here already, and where it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgemllm.cli import options
from edgemllm.commands.events import headed, write
from edgemllm.errors import MissingError

Name = Annotated[str | None, typer.Argument(help="Show one: sizes, tokens of a picture, and the devices it fits.")]


def models(name: Name = None, json: options.Json = False) -> None:
    """List known models, or show one: sizes, inputs, devices.

    Known are the shipped ones, the families, and what lies in the hub cache.
    """
    from edgemllm.models import hub, shipped

    if json:
        write(headed("models", {"models": _entries(name)}))
        return
    if name is not None:
        _one(name)
        return
    from edgemllm.device.memory import human_bytes

    here = hub.cached()
    print(f"{'name':20}{'parameters':>12}{'16 bit':>11}  trained weights")
    print(f"{'demo':20}{'3.7M':>12}{'':>11}  part of edgemllm")
    known = {shipped.hub_id(each) for each in shipped.names()}
    for each in shipped.names():
        count, source = shipped.parameters(each), shipped.hub_id(each)
        note = source or "none: for benchmarks"
        note += f"   in the cache, {human_bytes(here[source])}" if source in here else ""
        print(f"{each:20}{count / 1e6:>11,.0f}M{human_bytes(2 * count):>11}  {note}")
    for source, size in sorted(here.items()):
        if source not in known:
            print(f"{source}   in the cache, {human_bytes(size)}")
    print("\n--model takes a name, a hub id or a folder; random:NAME runs an architecture without a download")
    print("where one fits: edgemllm models NAME")


def _entries(name: str | None) -> list[dict[str, Any]]:
    """What `--json` tells of every known model, or of one."""
    from edgemllm.models import hub, shipped

    here = hub.cached()
    found = [{"name": "demo", "parameters": 3_700_000, "hub_id": None, "cached_bytes": None}]
    for each in shipped.names():
        source = shipped.hub_id(each) or None
        sizes = {"parameters": shipped.parameters(each), "hub_id": source, "cached_bytes": here.pop(source or "", None)}
        found.append({"name": each, **sizes})
    found += [{"name": each, "parameters": None, "hub_id": each, "cached_bytes": size} for each, size in sorted(here.items())]
    if name is None:
        return found
    chosen = [each for each in found if name in (each["name"], each["hub_id"])]
    if not chosen:
        raise MissingError(f"no model named {name}", f"edgemllm models {' | '.join(shipped.matching(name))}".strip())
    return chosen


def _one(name: str) -> None:
    from edgemllm.cli.plan import over_profiles, table
    from edgemllm.device.memory import human_bytes
    from edgemllm.launch import Request
    from edgemllm.models import shipped
    from edgemllm.models.loading import locate

    model = shipped.architecture(name)
    close = shipped.matching(name)
    if model == name != "demo" and close and "/" not in name and not Path(name).is_dir():
        raise MissingError(f"no model named {name}", f"edgemllm models {' | '.join(close)}")
    checkpoint = locate(model, offline=True)
    spec, sizes = checkpoint.spec, checkpoint.family.sizes(checkpoint.config)
    inputs = ["text"]
    inputs += [f"images (up to {sizes.image_tokens} tokens)"] if sizes.image_tokens else []
    inputs += [f"video (up to {sizes.frame_tokens} tokens a frame)"] if sizes.frame_tokens else []
    count = f"{spec.parameters / 1e6:,.1f} million" if spec.parameters < 1e8 else f"{spec.parameters / 1e9:.2f} billion"
    print(f"{name}: {checkpoint.config.model_type}, {count} parameters, {', '.join(inputs)}")
    weights = [f"{quant} {human_bytes(spec.weights_bytes(quant, 'bfloat16'))}" for quant in ("none", "int8", "nf4")]
    print(f"weights: {', '.join(weights)}" if not checkpoint.prequantised_with else f"weights: {checkpoint.prequantised_with}")
    print(table(over_profiles(Request(model, offline=True), checkpoint)))
