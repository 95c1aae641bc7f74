"""The one probe of memory: what is free now, on a board with shared memory, a graphics card or a plain CPU.

Swap never counts: a KV cache in swap is a stalled machine. A container's limit (cgroup) counts as the machine's.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgemllm.errors import UsageError

MemoryKind = Literal["unified", "discrete", "host"]

_UNITS = {
    "": 1,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "b": 1,
}


@dataclass(frozen=True)
class Memory:
    """What a model may use now, and of how much."""

    kind: MemoryKind
    """unified: GPU and system share it; discrete: a graphics card's own; host: the CPU's."""

    free_bytes: int
    """What can be allocated without swapping and without passing a container's limit."""

    total_bytes: int
    """All there is, or the container's limit where that is lower."""

    source: str = ""
    """Where the free figure comes from, for messages."""

    @property
    def used_bytes(self) -> int:
        return max(0, self.total_bytes - self.free_bytes)


def probe(device: str = "cpu", root: Path = Path("/")) -> Memory:
    """Return the memory that a model on `device` (cpu, cuda, cuda:1, mps) would live in. `root` holds proc/ and sys/."""
    if device.startswith("cuda"):
        return _cuda_memory(device, root)
    free, total, source = _system_memory(root)
    return Memory("unified" if device.startswith("mps") else "host", free, total, source)


def _cuda_memory(device: str, root: Path) -> Memory:
    import torch

    index = int(device.partition(":")[2] or 0)
    if bool(getattr(torch.cuda.get_device_properties(index), "is_integrated", False)):
        # mem_get_info on a Jetson counts the page cache as used: MemAvailable is what can really be had.
        free, total, source = _system_memory(root)
        return Memory("unified", free, total, source)
    free, total = torch.cuda.mem_get_info(index)
    return Memory("discrete", int(free), int(total), "GPU memory")


def _system_memory(root: Path) -> tuple[int, int, str]:
    free, total, source = _machine_memory(root)
    for limit, usage in _cgroup_limits(root):
        total = min(total, limit)
        if limit - usage < free:
            free, source = max(0, limit - usage), "container limit"
    return free, total, source


def _machine_memory(root: Path) -> tuple[int, int, str]:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:  # not Linux
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total), "available memory"
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    available = kib.get("MemAvailable", kib.get("MemFree", 0))
    return available * 1024, kib.get("MemTotal", available) * 1024, "MemAvailable"


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """Return (limit, usage) of every memory group that this process is in: the lowest of them stops it."""
    found = []
    for base, path in _cgroup_folders(root):
        folder = base / path
        while True:
            limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
            if limit and limit < 2**60:  # version 1 writes "no limit" as a number near 2**63
                usage = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
                found.append((limit, max(0, usage - _reclaimable(folder))))
            if folder == base:
                break
            folder = folder.parent
    return found


def _cgroup_folders(root: Path) -> list[tuple[Path, str]]:
    """Return where the groups are mounted, and this process's path below: version 2, its hybrid mount, version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", "1:memory:/"]
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        path = path.strip("/")
        if ".." in path.split("/"):  # the process sits outside of what this container can see
            path = ""
        if not controllers:
            folders += [(root / "sys/fs/cgroup", path), (root / "sys/fs/cgroup/unified", path)]
        elif "memory" in controllers.split(","):
            folders.append((root / "sys/fs/cgroup/memory", path))
    return folders


def _reclaimable(folder: Path) -> int:
    """Return the file pages that the kernel drops before it kills: a model file just read fills the group with them."""
    try:
        text = (folder / "memory.stat").read_text()
    except OSError:
        return 0
    match = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # missing, or the word "max"
        return None


def rss_bytes() -> int:
    """Return the memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def rss_peak_bytes() -> int:
    """Return the most memory this process ever held."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(device: str) -> int:
    """Return the most memory that tensors ever took on a CUDA device; 0 elsewhere."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if torch.cuda.is_available() else 0


def report(device: str, root: Path = Path("/")) -> dict[str, Any]:
    """Return the `memory` object of every `--json` answer."""
    memory = probe(device, root)
    return {
        "kind": memory.kind,
        "rss_peak_bytes": rss_peak_bytes(),
        "device_peak_bytes": device_peak_bytes(device),
        "free_bytes": memory.free_bytes,
        "total_bytes": memory.total_bytes,
    }


def parse_bytes(text: str) -> int:
    """Read a size in bytes: `512MiB` and `1.5g` are binary, `2 GB` is decimal, a bare number is bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match.group(2) not in _UNITS:
        raise UsageError(f"not an amount of memory: '{text}'", "write a number and a unit, such as 512MiB, 2GB or 1.5g")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def human_bytes(count: int) -> str:
    """Write a size as `112.0 MiB`: one decimal, binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{int(size)} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
