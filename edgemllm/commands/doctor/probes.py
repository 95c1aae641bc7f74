"""What is tried in a process of its own (child.py): libraries that may be missing or crash, and kernels that may hang."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgemllm.device import memory

SAMPLE = Path(__file__).parents[2] / "assets" / "demo" / "lecture.mp4"
NF4_ERROR = 0.15
"""Above this mean error of normal numbers, nf4 is not what came back."""


def built() -> dict[str, Any]:
    """Return what torch was built for, and what it sees; in `why_not`, its words for seeing no GPU."""
    import torch

    cuda, why_not = torch.cuda.is_available(), ""
    if not cuda and torch.version.cuda:
        try:
            torch.cuda.init()
        except Exception as error:
            why_not = _words(error)
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    return {
        "version": torch.__version__,
        "built_for": ", ".join(f"{name} {number}" for name, number in builds.items() if number),
        "why_not": why_not,
        "kernels_for": torch.cuda.get_arch_list() if cuda else [],
    }


def computes() -> dict[str, Any]:
    """Return the device that would be used, and multiply two matrices on it."""
    import torch

    name = _device()
    found: dict[str, Any] = {"device": name, "threads": torch.get_num_threads()}
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": str(properties.name),
            "total_bytes": int(properties.total_memory),
            "capability": [int(properties.major), int(properties.minor)],
            "integrated": bool(getattr(properties, "is_integrated", False)),
        }
    try:
        ones = torch.ones(64, 64, device=name)
        found["right"] = bool((ones @ ones == 64).all())
    except Exception as error:
        found["fault"] = _words(error)
    return found


def free_memory() -> dict[str, Any]:
    """Return the memory of that device as the planner sees it."""
    return asdict(memory.probe(_device()))


def quantises() -> dict[str, Any]:
    """Return its version, and whether values quantised to nf4 on that device come back."""
    import torch

    package = importlib.import_module("bitsandbytes")
    functional = importlib.import_module("bitsandbytes.functional")
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(_device())
    packed, state = functional.quantize_4bit(values, quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state) - values).abs().mean().item()
    return {"version": package.__version__, "right": error < NF4_ERROR}


def decodes() -> dict[str, Any]:
    """Return its version and video back ends, and whether it decodes a frame of the sample video."""
    import cv2

    text = cv2.getBuildInformation()
    backends = {name: re.search(rf"^ *{name}: +YES", text, re.MULTILINE) is not None for name in ("FFMPEG", "GStreamer")}
    capture = cv2.VideoCapture(str(SAMPLE))
    read = capture.read()[0]
    capture.release()
    return {"version": cv2.__version__, "ffmpeg": backends["FFMPEG"], "gstreamer": backends["GStreamer"], "decodes": read}


def hub_cache() -> dict[str, Any]:
    """Return the folder of the hub's cache, what its disk has free, and whether it can be written to."""
    folder = _hub_folder()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(there).free, "writable": os.access(there, os.W_OK | os.X_OK)}


GROUPS: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "device": {"torch": built, "device": computes, "memory": free_memory, "bitsandbytes": quantises},
    "opencv": {"opencv": decodes},
    "disk": {"disk": hub_cache},
}
"""The steps that are tried in one process: where one raises, the rest of them would too."""


def main(group: str, answers: str) -> None:
    """Run a group, and write a line when a step begins and one with what it found."""
    warnings.filterwarnings("ignore")
    with open(answers, "a", buffering=1, encoding="utf-8") as file:
        for name, step in GROUPS[group].items():
            file.write(json.dumps({"step": name}) + "\n")
            found: dict[str, Any] = {}
            with _caught(found):
                found |= step()
            file.write(json.dumps({"step": name, **found}) + "\n")
            if "error" in found:
                break


@contextlib.contextmanager
def _caught(found: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        found |= {"error": _words(error), "missing": missing}


def _words(error: Exception) -> str:
    """Return an error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _hub_folder() -> Path:
    """Return where the hub's checkpoints are, as huggingface_hub says; it may be missing where torch is."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        return Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home, "hub")).expanduser()
    return Path(HF_HUB_CACHE)
