"""Find which shipped profile this machine is: a Jetson by its device tree, a graphics card by its name, else the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgemllm.device.memory import probe
from edgemllm.device.profiles import DeviceProfile, load, names
from edgemllm.device.tegra import power_mode

ORIN = (8, 7)
NVIDIA = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap")
"""What NVIDIA's driver shows: of a graphics card, of a Jetson."""
DRIVERS = (*NVIDIA, "/dev/dxg", "/dev/kfd")
"""And others, which may be of a GPU that torch can use: of WSL, of ROCm."""


@dataclass(frozen=True)
class Gpu:
    """What CUDA says about device 0."""

    name: str
    total_bytes: int
    capability: tuple[int, int]
    integrated: bool


def cuda_gpu() -> Gpu | None:
    """Return CUDA device 0, or None when torch sees no GPU: where Linux has no driver for one, without importing torch."""
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return None
    try:
        import torch
    except ImportError:  # planning and the doctor do without
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    capability = (int(properties.major), int(properties.minor))
    integrated = bool(getattr(properties, "is_integrated", False))
    return Gpu(str(properties.name), int(properties.total_memory), capability, integrated)


def profile(name_or_file: str | Path) -> DeviceProfile:
    """Return what `--profile` means: `auto` is this machine, anything else a shipped name or a file."""
    return detect() if str(name_or_file) == "auto" else load(name_or_file)


def detect(root: Path = Path("/"), find_gpu: Callable[[], Gpu | None] = cuda_gpu) -> DeviceProfile:
    """Return the shipped profile nearest to this machine, with the memory that this machine really shows."""
    tree = device_tree(root)
    if "nvidia,tegra" in tree or (root / "etc/nv_tegra_release").exists():
        return _unified(tree, root, tree.partition("\n")[0])
    gpu = find_gpu()
    if gpu is None:
        return load("cpu")
    if gpu.integrated or gpu.capability == ORIN:  # a container hides the device tree
        return _unified(tree, root, gpu.name)
    return _discrete(gpu)


def device_tree(root: Path = Path("/")) -> str:
    """Return the board's model and compatible strings, one per line; empty where there is no device tree."""
    parts = []
    for name in ("model", "compatible"):
        try:
            parts += (root / "proc/device-tree" / name).read_text(errors="replace").split("\0")
        except OSError:
            continue
    return "\n".join(part.strip() for part in parts if part.strip())


def _unified(tree: str, root: Path, title: str) -> DeviceProfile:
    total = probe("cpu", root).total_bytes
    boards = [profile for profile in map(load, names()) if profile.kind == "unified" and profile.memory]
    named = [profile for profile in boards if any(module in tree for module in profile.modules)]
    named = named or [profile for profile in boards if _names(profile, title) and _near(profile, total)]
    if named:
        mode = power_mode(root)
        slowed = [profile for profile in named if mode and mode.name in profile.power_modes]
        return replace((slowed or [profile for profile in named if not profile.power_modes])[0], memory=total)
    boards = [profile for profile in boards if not profile.power_modes]
    nearest = _nearest(boards, total)
    # The module number is hidden or not listed: Orin boards differ by memory, so a class of the same size is right.
    if _near(nearest, total):
        return replace(nearest, title=title or nearest.title, memory=total)
    return replace(nearest, name="auto", title=title or "unified memory", memory=total, bandwidth_gb_s=None)


def _discrete(gpu: Gpu) -> DeviceProfile:
    cards = [profile for profile in map(load, names()) if profile.kind == "discrete"]
    named = [
        (len(part), profile.gpu_bandwidths.get(part, profile.bandwidth_gb_s), profile)
        for profile in cards
        if _near(profile, gpu.total_bytes)
        for part in _names(profile, gpu.name)
    ]
    if named:  # the longest name says most: an RTX 4070 Ti SUPER is also an RTX 4070
        _, bandwidth, profile = max(named, key=lambda each: each[0])
        return replace(profile, memory=gpu.total_bytes, bandwidth_gb_s=bandwidth)
    # The choices of the nearest class hold for any card of that size; its bandwidth does not.
    nearest = _nearest(cards, gpu.total_bytes)
    return replace(nearest, name="auto", title=gpu.name, memory=gpu.total_bytes, bandwidth_gb_s=None)


def _names(profile: DeviceProfile, gpu: str) -> list[str]:
    """Return the profile's names that are part of this GPU's; a laptop's has the name of a faster card in it."""
    return [part for part in profile.gpus if part in gpu and ("Laptop" in part) == ("Laptop" in gpu)]


def _near(profile: DeviceProfile, total: int) -> bool:
    """Return whether a machine with `total` bytes is of this class: names are shared by cards of different sizes."""
    return abs(total - (profile.memory or 0)) * 10 <= total


def _nearest(profiles: list[DeviceProfile], total: int) -> DeviceProfile:
    """Return the largest class that is not larger than this machine by more than a tenth, else the smallest."""
    ordered = sorted(profiles, key=lambda profile: (profile.memory or 0, profile.name))
    below = [profile for profile in ordered if (profile.memory or 0) <= total * 11 // 10]
    return below[-1] if below else ordered[0]
