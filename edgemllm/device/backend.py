"""What a run computes on and in: torch's device, and the dtype of the model there."""

from __future__ import annotations

from edgemllm.device.profiles import DeviceProfile
from edgemllm.errors import UsageError


def device_of(wanted: str, profile: DeviceProfile) -> str:
    """Return where to compute: the device asked for, or the profile's if torch has it. Raises UsageError where it does not."""
    if wanted == "cpu" or (wanted == "auto" and profile.backend == "cpu"):
        return "cpu"
    import torch

    kind = profile.backend if wanted == "auto" else wanted
    there = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if there:
        return kind
    if wanted == "auto":
        return "cpu"
    raise UsageError(f"--device {wanted}: this machine's torch has no {wanted}", "--device cpu, or --device auto")


def dtype_of(wanted: str, profile: DeviceProfile, device: str, elsewhere: bool) -> str:
    """Return the dtype asked for, or the one for this device; `elsewhere`: of a machine like the profile's, not of this one."""
    if wanted != "auto":
        return wanted
    # Most processors compute half precision more slowly than single.
    if device == "cpu":
        return "float32"
    if device == "cuda" and profile.dtype == "bfloat16" and not elsewhere:
        import torch

        # Before Ampere there is no bfloat16; a plan for another machine believes its profile.
        if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
            return "float16"
    return profile.dtype
