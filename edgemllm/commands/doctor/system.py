"""Memory, swap, power and disk: what the system gives a model, and what takes it away."""

from __future__ import annotations

import re
from pathlib import Path

from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.machine import Machine
from edgemllm.device import tegra
from edgemllm.device.memory import human_bytes

HELD_SHARE = 0.15
"""Of all memory: less than this may be the kernel's own."""
ACCOUNTED = (
    "MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "Slab", "KernelStack", "PageTables", "Percpu", "NvMapMemUsed",
)  # fmt: skip
"""What /proc/meminfo knows the use of; a graphics driver's pool is not among it."""
CHECKPOINT_BYTES = 8 << 30
"""A model of three billion parameters in 16 bits takes 7 GiB on disk."""
DESKTOPS = ("gnome-shell", "Xorg", "kwin_wayland", "sway", "weston", "xfwm4")


def profile(machine: Machine) -> Check:
    """Say which profile `--profile auto` is here."""
    chosen = machine.profile
    if chosen.name == "auto":
        cure = "edgemllm profiles lists those that exist; a TOML of your own: --profile FILE"
        return Check("profile", "note", f"none for {chosen.title}: the nearest class, of unknown bandwidth", (cure,))
    speed = f", {chosen.bandwidth_gb_s:g} GB/s" if chosen.bandwidth_gb_s else ""
    return Check("profile", "ok", f"{chosen.name}: {chosen.title}{speed}, weights {chosen.weights}")


def memory(machine: Machine) -> Check:
    """Show what the planner counts with, and what a driver holds of it."""
    here = machine.memory
    text = f"{human_bytes(here.free_bytes)} of {human_bytes(here.total_bytes)} free ({here.kind}; {here.source})"
    held = _held(machine.root) if machine.board else 0
    if held <= HELD_SHARE * here.total_bytes:
        return Check("memory", "ok", text)
    text += f"; {human_bytes(held)} are held by the GPU's driver"
    if machine.release and machine.release.numbers[0] >= 39:
        return Check("memory", "note", text, ("end other programs that use the GPU",))
    cure = "sudo sync && sudo sysctl -w vm.drop_caches=3"
    return Check("memory", "note", f"{text}, before JetPack 7.2 also for programs that have ended", (cure,))


def _held(root: Path) -> int:
    """Return the bytes whose use the kernel does not know."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)}
    return 1024 * (kib.get("MemTotal", 0) - sum(kib.get(name, 0) for name in ACCOUNTED))


def contiguous(machine: Machine) -> Check | None:
    """Warn of the release of Jetson Linux whose driver refuses large allocations; None for others."""
    if machine.release is None or machine.release.numbers != (36, 4, 7):
        return None
    text = "Jetson Linux 36.4.7 refuses large allocations that earlier and later ones grant (NvMapMemAlloc error 12)"
    return Check("allocations", "note", text, ("update to JetPack 6.2.2 (Jetson Linux 36.5): docs/jetson.md",))


def power(machine: Machine) -> Check | None:
    """Show a Jetson's power mode, and a better one where that one slows the memory; None elsewhere."""
    if not machine.board:
        return None
    modes, mode = tegra.power_modes(machine.root), tegra.power_mode(machine.root)
    if mode is None:
        return Check("power", "note", "the power mode cannot be read here", ("sudo nvpmodel -q",))
    if mode.memory_hz is None:
        return Check("power", "ok", f"{mode.name}; the memory's clock is not limited")
    text = f"{mode.name}; the memory's clock is limited to {mode.memory_hz / 1e6:.0f} MHz"
    free = [other for other in modes if other.memory_hz is None]
    faster = [other for other in modes if other.memory_hz and other.memory_hz > mode.memory_hz]
    if not faster and not free:
        return Check("power", "ok", text)
    best = (free or faster)[-1]
    return Check("power", "note", f"{text}, which slows decoding", (f"sudo nvpmodel -m {best.number} ({best.name})",))


def swap(machine: Machine) -> Check | None:
    """Show what the machine swaps to: the planner never counts it; None where the system does not say."""
    lines = _text(machine.root / "proc/swaps").splitlines()[1:]
    if not (machine.root / "proc/swaps").exists():
        return None
    areas = [(words[0], int(words[2]) * 1024, int(words[3]) * 1024) for words in map(str.split, lines) if len(words) >= 4]
    size, used = sum(area[1] for area in areas), sum(area[2] for area in areas)
    zram = sum(area[1] for area in areas if "/zram" in area[0])
    if not areas:
        return Check("swap", "ok", "none; a plan never counts with it")
    text = f"{human_bytes(used)} of {human_bytes(size)} in use"
    text += f", {human_bytes(zram)} of it zram" if 0 < zram < size else ", all of it zram" if zram else ""
    if used > size // 2:
        return Check(
            "swap", "note", f"{text}: the machine is short of memory", ("end other programs, or a smaller --kv-budget",)
        )
    if machine.memory.kind == "unified" or machine.board:
        if zram:
            text += "; zram compresses into the memory that the model needs"
            cures = ("sudo systemctl disable --now nvzramconfig", "a swap file on NVMe instead: docs/jetson.md")
            return Check("swap", "note", text, cures)
    return Check("swap", "ok", text)


def desktop(machine: Machine) -> Check | None:
    """Report a desktop on a Jetson, which shares its memory with the model; None where there is none."""
    if not machine.board:
        return None
    names = {_text(path).strip() for path in (machine.root / "proc").glob("[0-9]*/comm")}
    running = [name for name in DESKTOPS if name in names]
    if not running:
        return None
    cure = "sudo systemctl isolate multi-user.target (ends the desktop until the next start)"
    return Check("desktop", "note", f"{running[0]} runs in the memory that the model needs", (cure,))


def disk(machine: Machine) -> Check:
    """Check that checkpoints can be fetched into the hub's cache."""
    found = machine.of("disk")
    if "error" in found:
        return Check("disk", "fails", f"the hub's cache: {found['error']}", ("HF_HOME=/another/folder edgemllm ...",))
    text = f"{human_bytes(found['free_bytes'])} free for checkpoints, in {_short(found['folder'])}"
    if not found["writable"]:
        return Check("disk", "fails", f"{text}, which cannot be written to", ("HF_HOME=/another/folder edgemllm ...",))
    if found["free_bytes"] < CHECKPOINT_BYTES:
        return Check("disk", "note", f"{text}: a model of 3B takes 7 GiB", ("HF_HOME=/a/larger/disk edgemllm ...",))
    return Check("disk", "ok", text)


def _short(path: str) -> str:
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path.startswith(f"{home}/") else path


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
