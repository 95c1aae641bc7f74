"""torch, its device, bitsandbytes and OpenCV: whether they are there, and whether they do what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemllm.commands.doctor import cures
from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.machine import Machine


def torch(machine: Machine) -> Check:
    """Check that torch is there, and was built for the GPU that is."""
    found = machine.of("device", "torch")
    if "error" in found:
        cure = cures.torch(machine, there=found.get("missing") != "torch")
        return Check("torch", "fails", _missing(found, "torch"), cure)
    text = f"{found['version']}, {found['built_for'] or 'without CUDA'}"
    if machine.driver and not found["built_for"]:
        return Check("torch", "fails", f"{text}, and this machine has a GPU", cures.torch(machine))
    return Check("torch", "ok", text)


def device(machine: Machine) -> Check | None:
    """Check that the device that would be used multiplies two matrices; None where torch is missing."""
    built, found = machine.of("device", "torch"), machine.of("device", "device")
    if "error" in built:
        return None
    if "error" in found:
        return Check("device", "fails", found["error"], ("edgemllm ... --device cpu",))
    if found["device"] != "cuda":
        return _without_cuda(machine, built["why_not"], found)
    major, minor = found["capability"]
    text = f"cuda: {found['name']}, compute capability {major}.{minor}"
    if found.get("right"):
        return Check("device", "ok", f"{text}; multiplies matrices")
    kernels = ", ".join(built["kernels_for"]) or "none"
    fault = found.get("fault", "a product of matrices is wrong")
    return Check("device", "fails", f"{text}: {fault} (torch has kernels for {kernels})", cures.torch(machine))


def _without_cuda(machine: Machine, why_not: str, found: Mapping[str, Any]) -> Check:
    name = found["device"]
    text = f"cpu, torch's threads: {found['threads']}" if name == "cpu" else f"{name}: Apple's GPU"
    if not found.get("right"):
        return Check("device", "fails", f"{text}: {found.get('fault', 'a product of matrices is wrong')}", cures.torch(machine))
    if machine.driver and why_not:
        return Check("device", "fails", f"{text}; torch sees no GPU: {why_not}", _access(machine))
    if name == "mps":
        text += "; multiplies matrices. Not yet tried with edgemllm, so that auto takes the CPU"
        return Check("device", "note", text, ("edgemllm ... --profile apple-silicon",))
    return Check("device", "ok", f"{text}; multiplies matrices")


def _access(machine: Machine) -> tuple[str, ...]:
    if machine.board:
        return ("sudo usermod -aG video,render $USER, then log in again", "in a container: docker run --runtime nvidia ...")
    return ("nvidia-smi shows whether the driver works", "in a container: docker run --gpus all ...")


def bitsandbytes(machine: Machine) -> Check | None:
    """Check that values quantised on the device come back; None where torch or the device does not work."""
    computing, found = machine.of("device", "device"), machine.of("device", "bitsandbytes")
    if not computing.get("right"):
        return None
    needed = machine.device == "cuda" and machine.profile.weights in ("nf4", "int8")
    if found.get("missing") == "bitsandbytes":
        text = "not installed: no --quant nf4" + ("" if machine.device == "cpu" else " or int8")
        cure = cures.bitsandbytes(machine) if machine.board else ("pip install 'edgemllm[quant]'",)
        return Check("bitsandbytes", "fails" if needed else "note", text, cure)
    if "error" in found:
        text = f"does not work: {found['error'] or 'it was not reached'}"
        return Check("bitsandbytes", "fails", text, cures.bitsandbytes(machine))
    if not found["right"]:
        text = f"{found['version']}: values quantised to nf4 on {machine.device} come back wrong"
        return Check("bitsandbytes", "fails", text, cures.bitsandbytes(machine))
    return Check("bitsandbytes", "ok", f"{found['version']}; quantises to nf4 on {machine.device}")


def opencv(machine: Machine) -> Check:
    """Check that OpenCV decodes the sample video, and what it can open besides files."""
    found = machine.of("opencv")
    if "error" in found:
        cure = ("pip uninstall opencv-python opencv-python-headless", "pip install opencv-python-headless")
        return Check("opencv", "fails", _missing(found, "cv2"), cure[found.get("missing") == "cv2" :])
    has = {"FFmpeg": found["ffmpeg"], "GStreamer": found["gstreamer"]}
    text = ", ".join([found["version"], *(f"{'with' if there else 'without'} {name}" for name, there in has.items())])
    if not found["decodes"]:
        return Check("opencv", "fails", f"{text}; does not decode the sample video", ("pip install opencv-python-headless",))
    text += "; decodes video"
    if machine.board and not found["gstreamer"]:
        text += ". GStreamer pipelines, and with them the hardware decoder, are out of reach"
        return Check("opencv", "note", text, ("an OpenCV with GStreamer: docs/jetson.md",))
    return Check("opencv", "ok", text)


def _missing(found: Mapping[str, Any], name: str) -> str:
    return "not installed" if found.get("missing") == name else f"cannot be imported: {found['error']}"
