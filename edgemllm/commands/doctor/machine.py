"""Everything that the checks look at, gathered once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemllm.commands.doctor import child
from edgemllm.commands.doctor.child import Outcome
from edgemllm.device import detect, memory, tegra
from edgemllm.device.detect import Gpu
from edgemllm.device.memory import Memory
from edgemllm.device.profiles import DeviceProfile
from edgemllm.device.tegra import Release

SECONDS = {"device": 120.0, "opencv": 60.0, "disk": 10.0}
"""How long a group of probes may take: importing torch from a slow card takes half a minute."""


@dataclass(frozen=True)
class Machine:
    """This machine, or a fixture of one."""

    root: Path
    """Where proc/, sys/, etc/ and var/ are."""

    board: str
    """A Jetson's name; empty elsewhere."""

    release: Release | None
    """A Jetson's system."""

    driver: bool
    """Whether the system has a driver for an NVIDIA GPU."""

    outcomes: dict[str, Outcome]
    """What came of each group of probes."""

    profile: DeviceProfile
    memory: Memory
    """Of the device that would be used, as the planner sees it."""

    @property
    def device(self) -> str:
        """Return cuda, mps or cpu."""
        return str(self.outcomes["device"].of("device").get("device", "cpu"))

    def of(self, group: str, step: str = "") -> dict[str, Any]:
        """Return what a step of a group found; `error` where it failed."""
        return dict(self.outcomes[group].of(step or group))


def examine(root: Path = Path("/"), run: Callable[[str, float], Outcome] = child.run) -> Machine:
    """Look at the machine whose files are below `root`; `run` runs a group of probes."""
    outcomes = {group: run(group, seconds) for group, seconds in SECONDS.items()}
    release, tree = tegra.release(root), detect.device_tree(root)
    jetson = release is not None or "nvidia,tegra" in tree
    facts, seen = (outcomes["device"].of(step) for step in ("device", "memory"))
    profile = detect.detect(root, lambda: _gpu(facts))
    return Machine(
        root=root,
        board=(tree.partition("\n")[0] or "Jetson") if jetson else "",
        release=release,
        driver=any((root / path.lstrip("/")).exists() for path in detect.NVIDIA),
        outcomes=outcomes,
        profile=profile,
        memory=_system_memory(root, profile) if "error" in seen else Memory(**seen),
    )


def _system_memory(root: Path, profile: DeviceProfile) -> Memory:
    """Return the system's memory, which on a board is the GPU's too, where torch cannot be asked."""
    found = memory.probe("cpu", root)
    return replace(found, kind="unified") if profile.kind == "unified" else found


def _gpu(facts: Any) -> Gpu | None:
    if "name" not in facts:
        return None
    major, minor = facts["capability"]
    return Gpu(facts["name"], facts["total_bytes"], (major, minor), facts["integrated"])
