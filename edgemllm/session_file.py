"""A session in one file: the bounded cache, positions and chat state as safetensors (no pickle), written atomically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgemllm import __version__
from edgemllm.cache.layer import CacheLayer
from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.session import Meter, Session

FORMAT = "edgemllm-session/1"


def save(session: Session, path: Path, notes: Mapping[str, Any] | None = None) -> int:
    """Write the session and a caller's notes (JSON); returns the file's bytes. A failure leaves an earlier file as it was."""
    tensors = {
        f"{number}.{name}": tensor
        for number, layer in enumerate(session.cache.layers)
        for name, tensor in _tensors(layer).items()
    }
    if session.last is not None:
        tensors["last"] = session.last.contiguous()
    header = {
        "format": FORMAT,
        "edgemllm": __version__,
        **_identity(session),
        "position": session.position,
        "first": session.first,
        "media": session.media,
        "meter": dataclasses.asdict(session.meter),
        "layers": [
            {"length": layer.length, "seen": layer.seen, "evicted": layer.evicted, "scaling": layer.scaling}
            | ({"room": layer.keys.shape[2]} if layer.is_initialized else {})
            for layer in session.cache.layers
        ],
        "notes": dict(notes or {}),
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, beside, metadata={"session": json.dumps(header)})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise EdgeError(f"cannot save the session to {path}: {error}", "choose a place with free space") from error
    finally:
        beside.unlink(missing_ok=True)
    return path.stat().st_size


def read_notes(path: Path) -> dict[str, Any]:
    """What `save` was given as notes. Raises MissingError and UsageError as `load` does."""
    return dict(_header(path).get("notes", {}))


@torch.inference_mode()
def load(session: Session, path: Path) -> None:
    """Put a saved session into this one. Raises MissingError, and UsageError where model, policy or budget differ."""
    header = _header(path)
    _check(session, header, path)
    try:
        with safe_open(path, framework="pt", device=str(session.family.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged or not a saved session: {error}") from error
    for number, (layer, counts) in enumerate(zip(session.cache.layers, header["layers"], strict=True)):
        prefix = f"{number}."
        _restore(layer, {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}, counts)
    session.position, session.first, session.media = header["position"], header["first"], header["media"]
    session.meter, session.last = Meter(**header["meter"]), tensors.get("last")


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"no saved session {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get("session", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UsageError(f"{path} is damaged or not a saved session: {error}") from error
    if header.get("format") != FORMAT:
        raise UsageError(f"{path} is not a session of this version ({header.get('format', 'no format')})")
    return header


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
    length = counts["length"]
    if not layer.is_initialized:
        # An unbounded layer had room for more than it held; the same room again, so that it grows at the same places.
        room = counts.get("room", length)
        layer.lazy_initialization(*(tensors[name][:, :, :1].expand(-1, -1, room, -1) for name in ("keys", "values")))
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
            what = f"another {key}" if key == "model" else f"{key} {header.get(key)}, this session has {mine}"
            raise UsageError(f"{path} was saved with {what}", "start with the same --model, --dtype, --policy and --set")
    longest = max(layer["length"] for layer in header["layers"])
    if session.budget is not None and longest > session.budget:
        raise UsageError(
            f"{path} holds {longest} tokens a layer, more than the KV budget of {session.budget}",
            f"--kv-budget {longest} or more",
        )
