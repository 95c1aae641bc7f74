"""What to type where torch or bitsandbytes does not work: it depends on the JetPack (docs/jetson.md has the sources)."""

from __future__ import annotations

from edgemllm.commands.doctor.machine import Machine

PAGE = "docs/jetson.md"
INDEX = "https://pypi.jetson-ai-lab.io"
"""Wheels for boards."""


def torch(machine: Machine, there: bool = True) -> tuple[str, ...]:
    """Return how to install a torch that computes on this machine's GPU; `there`: another one is."""
    major = machine.release.numbers[0] if machine.release else 0
    if not machine.board:
        return (f"pip install {'--force-reinstall ' if there else ''}torch",)
    if 0 < major < 36:
        return (f"install JetPack 6 or 7: earlier ones have Python 3.8 ({PAGE})",)
    if major == 36:
        return (f"pip install torch --index-url {INDEX}/jp6/cu126",)
    if major == 38 or "Thor" in machine.board:
        return (f"pip install torch --index-url {INDEX}/sbsa/cu130", f"libraries that it needs besides: {PAGE}")
    return (f"a wheel with kernels for Orin (8.7): {PAGE}",)


def bitsandbytes(machine: Machine) -> tuple[str, ...]:
    """Return how to get one that works, and how to do without."""
    without = "--quant int8 or int4, which need no package" if machine.device == "cpu" else "--quant none"
    if not machine.board:
        return ("pip install --force-reinstall bitsandbytes", without)
    if machine.release and machine.release.numbers[0] == 36:
        return (f"pip install bitsandbytes --index-url {INDEX}/jp6/cu126", f"or build it on the board: {PAGE}", without)
    return (f"build it on the board: {PAGE}", without)
