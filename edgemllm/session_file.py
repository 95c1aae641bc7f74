"""A session in one file: the bounded cache, positions and chat state as safetensors (no pickle), written atomically.

What belongs to the run around the session (where a stream was, when the next question is due) travels beside it as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgemllm import __version__
from edgemllm.cache.layer import CacheLayer
from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.session import Meter, Session

FORMAT = "edgemllm-session/2"


def save(session: Session, path: Path, run: Mapping[str, Any] | None = None) -> int:
    """Write the session and the state of its `run`; returns the file's bytes. A failure leaves an earlier file as it was."""
    tensors = {
        f"{number}.{name}": tensor
        for number, layer in enumerate(session.cache.layers)
        for name, tensor in _tensors(layer).items()
    }
    header = {
        "format": FORMAT,
        "versions": {"edgemllm": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "name": session.family.name,
        **_identity(session),
        "position": session.position,
        "first": session.first,
        "media": session.media,
        "watching": session.watching,
        "run": dict(run or {}),
        "meter": dataclasses.asdict(session.meter),
        "layers": [
            {"length": layer.length, "seen": layer.seen, "evicted": layer.evicted, "scaling": layer.scaling}
            for layer in session.cache.layers
        ],
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(header)
        save_file(tensors, beside, metadata={"session": text, "checksum": _checksum(text, tensors)})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise EdgeError(f"cannot save the session to {path}: {error}", "choose a place with free space") from error
    finally:
        beside.unlink(missing_ok=True)
    return path.stat().st_size


def run_of(path: Path) -> dict[str, Any]:
    """The state of the run of a saved session, without the session. Raises as `load` does."""
    with _opened(path, "cpu") as file:
        run: dict[str, Any] = _header(file, path)[1]["run"]
    return run


@torch.inference_mode()
def load(session: Session, path: Path) -> dict[str, Any]:
    """Put a saved session into this one; returns the state of its run, as given to `save`.

    Raises MissingError, and UsageError where the file is damaged, or of another model, policy or budget.
    """
    if not path.is_file():
        raise MissingError(f"no saved session {path}")
    try:
        with safe_open(path, framework="pt", device=str(session.family.device)) as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("session", "{}"))
            if header.get("format") != FORMAT:
                raise UsageError(
                    f"{path} is no session that edgemllm {__version__} can read: it says {header.get('format', 'no format')}, "
                    f"this version writes {FORMAT}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("checksum") != _checksum(metadata["session"], tensors):
            raise UsageError(f"{path} is damaged: its checksum does not fit its content", "use an older copy")
        _check(session, header, path)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UsageError(f"{path} is damaged or not a saved session: {error}") from error
    for number, (layer, counts) in enumerate(zip(session.cache.layers, header["layers"], strict=True)):
        prefix = f"{number}."
        _restore(layer, {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}, counts)
    session.position, session.first, session.media = header["position"], header["first"], header["media"]
    session.meter, session.watching = Meter(**header["meter"]), header["watching"]
    run: dict[str, Any] = header["run"]
    return run


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(header.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _tensors(layer: CacheLayer) -> dict[str, Tensor]:
    if not layer.is_initialized:
        return {}
    live = slice(layer.length)
    found = {
        "keys": layer.keys[:, :, live],
        "values": layer.values[:, :, live],
        "positions": layer.positions[..., live],
        "modality": layer.modality[..., live],
        "time": layer.time[..., live],
        **{f"slot.{name}": buffer[..., live] for name, buffer in layer.slots.items()},
        **{f"stat.{name}": value for name, value in layer.stats.items()},
    }
    if layer.queries is not None:
        found["queries"] = layer.queries
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _restore(layer: CacheLayer, tensors: dict[str, Tensor], counts: dict[str, Any]) -> None:
    layer.reset()
    layer.queries = tensors.get("queries")
    layer.seen, layer.evicted, layer.scaling = counts["seen"], counts["evicted"], counts["scaling"]
    if "keys" not in tensors:
        return
    if not layer.is_initialized:
        layer.lazy_initialization(tensors["keys"], tensors["values"])
    length = counts["length"]
    for name in ("keys", "values"):
        getattr(layer, name)[:, :, :length] = tensors[name]
    for name in ("positions", "modality", "time"):
        getattr(layer, name)[..., :length] = tensors[name]
    for name, buffer in layer.slots.items():
        buffer[..., :length] = tensors[f"slot.{name}"]
    layer.stats = {name[5:]: value for name, value in tensors.items() if name.startswith("stat.")}
    layer.length = length


def _identity(session: Session) -> dict[str, Any]:
    """What must agree between the session that saved and the one that loads."""
    config = session.family.model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config"):
        config.pop(volatile, None)
    shape = json.dumps(config, sort_keys=True, default=str)
    # The last norm is small, never quantised, and differs between fine-tunes of one architecture.
    norm = session.family.text_model.norm.weight.detach().float().cpu()
    weights = norm.contiguous().view(torch.uint8).numpy().tobytes()
    return {
        "model": hashlib.sha256(shape.encode() + weights).hexdigest(),
        "dtype": str(session.family.dtype),
        "policy": type(session.policy).__name__,
        "settings": json.dumps(dataclasses.asdict(session.policy), sort_keys=True),
    }


def _check(session: Session, header: dict[str, Any], path: Path) -> None:
    for key, mine in _identity(session).items():
        if header.get(key) != mine:
            theirs, here = (header["name"], session.family.name) if key == "model" else (header.get(key), mine)
            what = f"{'another ' if theirs == here else ''}{key} {theirs}, this session has {here}"
            raise UsageError(f"{path} was saved with {what}", "start with the same --model, --dtype, --policy and --set")
    longest = max(layer["length"] for layer in header["layers"])
    if session.budget is not None and longest > session.budget:
        raise UsageError(
            f"{path} holds {longest} tokens a layer, more than the KV budget of {session.budget}",
            f"--kv-budget {longest} or more",
        )
