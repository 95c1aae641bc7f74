"""The models that are known, and which of them are in the hub cache; without importing torch."""

from __future__ import annotations

from typing import Any

from edgemllm.commands.events import headed, write
from edgemllm.device.memory import human_bytes
from edgemllm.errors import MissingError
from edgemllm.models import hub, shipped


def show() -> None:
    """Print a line for each."""
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


def write_json(name: str | None) -> None:
    """Write all of them, or one, as the object of `--json`. Raises MissingError for an unknown name."""
    write(headed("models", {"models": _entries(name)}))


def _entries(name: str | None) -> list[dict[str, Any]]:
    """Return what `--json` reports of every known model, or of one."""
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
