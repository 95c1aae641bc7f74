"""What to type where torch or bitsandbytes does not work: it depends on the JetPack (docs/jetson.md has the sources)."""

from __future__ import annotations

from edgemllm.device.tegra import Release

PAGE = "docs/jetson.md"
INDEX = "https://pypi.jetson-ai-lab.io"


def torch(release: Release | None, there: bool = True) -> tuple[str, ...]:
    """Return how to install a torch that computes on this machine's GPU; `there`: another one is."""
    if release is None:
        return (f"pip install {'--force-reinstall ' if there else ''}torch",)
    if release.numbers[0] < 36:
        return (f"install JetPack 6 or 7: earlier ones have Python 3.8 ({PAGE})",)
    if release.numbers[0] < 38:
        return (f"pip install torch --index-url {INDEX}/jp6/cu126",)
    return (f"pip install torch --index-url {INDEX}/sbsa/cu130", f"a wheel with kernels for this GPU: {PAGE}")


def bitsandbytes(release: Release | None, device: str) -> tuple[str, ...]:
    """Return how to get one that works, and how to do without."""
    without = ("--quant int8 or int4, which need no package",) if device == "cpu" else ("--quant none",)
    if release is None:
        return ("pip install --force-reinstall bitsandbytes", *without)
    if release.numbers[0] < 38:
        return (f"pip install bitsandbytes --index-url {INDEX}/jp6/cu126", f"or build it on the board: {PAGE}", *without)
    return (f"build it on the board: {PAGE}", *without)
