"""`edgemllm profiles`: the devices that have a profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgemllm.commands.events import headed, write
from edgemllm.device import profiles as known
from edgemllm.device.detect import detect
from edgemllm.device.memory import human_bytes


def show(name: str | None, json: bool) -> None:
    """Write every profile, or one of them with its sources."""
    if json:
        described = [known.load(each) for each in ([name] if name else known.names())]
        here = detect().name
        entries = [{**dataclasses.asdict(each), "this_machine": each.name == here} for each in described]
        write(headed("profiles", {"profiles": entries}))
        return
    if name is None:
        here = detect().name
        for each in known.names():
            profile = known.load(each)
            memory = human_bytes(profile.memory) if profile.memory else "what is free"
            print(f"{each:26}{memory:>14}  {profile.weights:5} {profile.title}{'   <- this machine' if each == here else ''}")
        return
    profile = known.load(name)  # refuses a file that is none
    path = Path(name) if Path(name).is_file() else known.configs_folder() / "devices" / f"{profile.name}.toml"
    print(path.read_text().rstrip())
