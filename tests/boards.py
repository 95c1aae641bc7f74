"""Trees of /proc, /sys, /etc and /var as boards have them, small: what their files say, in the formats they say it in.

The device trees and releases are those that owners posted (rbonghi/jetson_stats issues 400, 711 and 864), the power modes those
of NVIDIA's nvpmodel_p3767_0003_super.conf, meminfo and swaps as the kernel documents them (proc_meminfo(5), proc_swaps(5)).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemllm.commands.doctor.child import Outcome

GIB = 2**30
NANO_MODES = {"15W": 2133000000, "25W": 3199000000, "MAXN_SUPER": -1, "7W": 2133000000}
THOR_MODES = {"MAXN": -1, "120W": -1}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below `root`, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(total_kib: int, free: float = 0.6, held: float = 0.0) -> str:
    """A machine of which `free` is available and `held` is in no list of the kernel's."""
    rest = int(total_kib * (1 - free - held))
    return (
        f"MemTotal:       {total_kib} kB\nMemFree:        {int(total_kib * free) - 500_000} kB\n"
        f"MemAvailable:   {int(total_kib * free)} kB\nBuffers:        100000 kB\nCached:         400000 kB\n"
        f"AnonPages:      {rest - 60_000} kB\nSlab:           50000 kB\nKernelStack:    10000 kB\nCmaTotal:       262144 kB\n"
    )


def nvpmodel(modes: Mapping[str, int], mode: int) -> dict[str, str]:
    """nvpmodel's configuration and the mode it is in."""
    blocks = [
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\nGPU MAX_FREQ 612000000\nEMC MAX_FREQ {hertz}\n"
        for number, (name, hertz) in enumerate(modes.items())
    ]
    head = "< PARAM TYPE=CLOCK NAME=EMC >\nMAX_FREQ /sys/kernel/nvpmodel_clk_cap/emc\n"
    conf = "\n".join(["# < POWER_MODEL ID=id_num NAME=mode_name >", head, *blocks, "< PM_CONFIG DEFAULT=1 >"])
    return {"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet"}


def swaps(*areas: tuple[str, int, int]) -> str:
    """/proc/swaps with areas of a name, a size and what is used of it, in KiB."""
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    return head + "".join(f"{name}                              partition\t{size}\t{used}\t\t5\n" for name, size, used in areas)


def release(major: int, revision: str) -> str:
    """/etc/nv_tegra_release."""
    return f"# R{major} (release), REVISION: {revision}, GCID: 45755727, BOARD: generic, EABI: aarch64, DATE: Mon Jun  1\n"


def orin_nano(
    root: Path, system: tuple[int, str] = (36, "4.7"), mode: int = 2, memory: str = "", swap: str = "", **files: str
) -> Path:
    """The developer kit Orin Nano Super."""
    return tree(root, {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/meminfo": memory or meminfo(7_802_000),
        "proc/swaps": swap or swaps(),
        "etc/nv_tegra_release": release(*system),
        "dev/nvmap": "",
        **nvpmodel(NANO_MODES, mode),
        **files,
    })  # fmt: skip


def thor(root: Path, system: tuple[int, str] = (38, "2.0"), held: float = 0.0) -> Path:
    """The developer kit AGX Thor."""
    return tree(root, {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        "proc/meminfo": meminfo(128_800_000, held=held),
        "etc/nv_tegra_release": release(*system),
        "dev/nvidiactl": "",
        **nvpmodel(THOR_MODES, 1),
    })  # fmt: skip


def desktop(root: Path) -> Path:
    """A PC with a graphics card."""
    return tree(
        root, {"proc/meminfo": meminfo(32_000_000), "proc/swaps": swaps(("/swapfile", 2_000_000, 0)), "dev/nvidiactl": ""}
    )


ORIN = {"name": "Orin", "capability": [8, 7], "integrated": True, "total_bytes": 7_802_000 * 1024}
THOR = {"name": "NVIDIA Thor", "capability": [11, 0], "integrated": True, "total_bytes": 128_800_000 * 1024}
CARD = {"name": "NVIDIA GeForce RTX 4060 Laptop GPU", "capability": [8, 9], "integrated": False, "total_bytes": 8 * GIB}


def outcomes(gpu: Mapping[str, Any] | None = None, **changed: Any) -> Any:
    """What the probes find where all is well, with the steps `changed`; an Outcome stands for a whole group."""
    kernels = [f"sm_{''.join(map(str, gpu['capability']))}"] if gpu else []
    device = {"device": "cuda", **gpu} if gpu else {"device": "cpu"}
    steps: dict[str, dict[str, Any]] = {
        "torch": {"version": "2.8.0", "built_for": "CUDA 12.6" if gpu else "", "why_not": "", "kernels_for": kernels},
        "device": {**device, "threads": 6, "right": True},
        "bitsandbytes": {"version": "0.50.2", "right": True},
        "opencv": {"version": "5.0.0", "ffmpeg": True, "gstreamer": True, "decodes": True},
        "disk": {"folder": "/data/hub", "free_bytes": 64 * GIB, "writable": True},
    }
    steps |= {name: found for name, found in changed.items() if not isinstance(found, Outcome)}

    def run(group: str, seconds: float) -> Outcome:
        if isinstance(changed.get(group), Outcome):
            return changed[group]
        names = ("torch", "device", "memory", "bitsandbytes") if group == "device" else (group,)
        return Outcome({name: steps[name] for name in names if name in steps})

    return run
