"""A session in one file: the bounded cache, positions and chat state as safetensors (no pickle), written atomically.

What belongs to the run around the session (where a stream was, when the next question is due) travels beside it as JSON.
"""

from __future__ import annotations

import contextlib
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

from edgemllm import policies
from edgemllm.archive import resuming
from edgemllm.errors import EdgeError, MissingError, UsageError, opening, shortened
from edgemllm.media.frame import Frame
from edgemllm.meter import Meter
from edgemllm.models.document import Document
from edgemllm.models.quantisation import quantisation_of
from edgemllm.models.weights import fingerprint
from edgemllm.session import Session
from edgemllm.version import __version__

FORMAT = "edgemllm-session/8"
OPTIONS = {"kv_bits": "kv-bits", "architecture": "model", "weights": "model", "settings": "set"}
"""Where the option that sets a part of the identity has another name."""
MAY_CHANGE = ("kv_budget", "vision_dtype")
"""What may be otherwise than in the file: the slots, and how the processor that continues computes frames."""


@torch.inference_mode()
def save(session: Session, path: Path, run: Mapping[str, Any] | None = None) -> int:
    """Write the session and the state of its `run`; returns the file's bytes. A failure leaves an earlier file as it was.

    Raises EdgeError where it cannot be written, and as `check_place` does.
    """
    path = check_place(path)
    session.settle()
    states = [layer.state() for layer in session.cache.layers]
    tensors = {f"{number}.{name}": t.contiguous() for number, (live, _) in enumerate(states) for name, t in live.items()}
    clip = session.clip
    waiting = []
    for number, frame in enumerate(clip.waiting if clip else []):
        tensors[f"clip.{number}"] = torch.from_numpy(frame.pixels.copy())
        waiting.append((frame.time, frame.index))
    if session.last is not None:
        tensors["last"] = session.last.contiguous()
    header = {
        "format": FORMAT,
        "versions": {"edgemllm": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "name": session.family.name,
        **_identity(session),
        "vision_dtype": str(session.family.vision_dtype).removeprefix("torch."),
        "position": session.position,
        "stride": session.cache.rope.stride,
        "first": session.first,
        "media": session.media,
        "system": session.system,
        "context": session.document.context if session.document else None,
        "clip": None
        if clip is None
        else {"counters": {name: getattr(clip, name) for name in clip.counters}, "waiting": waiting},
        "run": dict(run or {}),
        "archive": resuming.state(session),
        "kv_budget": session.budget,
        "meter": dataclasses.asdict(session.meter),
        "layers": [values for _, values in states],
        "budgets_final": session.cache.budgets_final,
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(header)
        save_file(tensors, beside, metadata={"session": text, "checksum": _checksum(text, tensors)})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise EdgeError(
            f"cannot save the session to {shortened(str(path))}: {shortened(str(error))}",
            "make room or choose another place; an earlier file is as it was",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a name that cannot be made cannot be removed
            beside.unlink()
    return path.stat().st_size


def check_place(path: Path) -> Path:
    """Return the file that a session saved to `path` replaces: symbolic links are followed, so that they stay links.

    Raises UsageError for what is no regular file or cannot be written, and MissingError for a folder that is not there.
    """
    target = Path(os.path.realpath(path))
    with opening(path, UsageError):
        target.exists()
    if target.is_dir():
        raise UsageError(f"{path} is a folder", f"name a file in it, such as {path / 'state.edge'}")
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} is a device, pipe or socket, which a session would replace", "name a regular file")
    if not target.parent.is_dir():
        raise MissingError(f"no folder {target.parent} to save the session in", f"mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"folder {target.parent} cannot be written to", "choose another place")
    return target


def run_of(path: Path) -> dict[str, Any]:
    """Return the run's state of a saved session and what `MAY_CHANGE` of it, without the session. Raises as `load` does."""
    return _run(_read(path, "cpu")[0])


def _run(header: dict[str, Any]) -> dict[str, Any]:
    return {**header["run"], **{name: header.get(name) for name in MAY_CHANGE}}


@torch.inference_mode()
def load(session: Session, path: Path) -> dict[str, Any]:
    """Put a saved session into this one; returns the state of its run, as given to `save`, and what `MAY_CHANGE` as it was.

    Raises MissingError where the file is not there or damaged, UsageError where it is of another model, policy or budget.
    """
    header, tensors = _read(path, str(session.family.device))
    _check(session, header, path)
    _shares(session, header, path)
    resuming.take_over(session, header.get("archive"), path)
    session.decoder.forget()  # graphs hold the addresses of what is replaced here
    for number, (layer, values) in enumerate(zip(session.cache.layers, header["layers"], strict=True)):
        prefix = f"{number}."
        layer.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, values)
    session.cache.rope.stride = header["stride"]
    session.cache.budgets_final = header["budgets_final"]
    session.position, session.first, session.media = header["position"], header["first"], header["media"]
    session.system = session.system if session.system is not None else header["system"]
    session.meter, session.clip, session.last = Meter(**header["meter"]), None, tensors.get("last")
    context = header.get("context")
    session.document = None if context is None else Document(session.family.tokenizer, context)
    if header["clip"] is not None:
        session.clip = session.family.video()
        for name, value in header["clip"]["counters"].items():
            setattr(session.clip, name, value)
        for number, (time, index) in enumerate(header["clip"]["waiting"]):
            session.clip.waiting.append(Frame(tensors[f"clip.{number}"].cpu().numpy(), time, index))
    return _run(header)


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors of a whole file."""
    with opening(path, MissingError):
        if not path.is_file():
            raise MissingError(f"no saved session {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("session", "{}"))
            if header.get("format") != FORMAT:
                raise MissingError(
                    f"{path} is no session that edgemllm {__version__} can read: it says {header.get('format', 'no format')}, "
                    f"this version writes {FORMAT}",
                    "start anew without it, or continue it with the version that saved it",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise MissingError(f"{path} is damaged or not a saved session: {error}") from error
    if metadata.get("checksum") != _checksum(metadata["session"], tensors):
        raise MissingError(f"{path} is damaged: its checksum does not fit its content", "use an older copy")
    return header, tensors


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(header.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _identity(session: Session) -> dict[str, Any]:
    """Return what must agree between the session that saved and the one that loads, what explains most first."""
    model = session.family.model
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config"):
        config.pop(volatile, None)
    return {
        "dtype": str(session.family.dtype).removeprefix("torch."),
        "quant": quantisation_of(model),
        "architecture": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": fingerprint(model),
        "policy": policies.name_of(session.policy),
        "kv_bits": session.bits.name,
        "settings": json.dumps(dataclasses.asdict(session.policy), sort_keys=True),
    }


def _check(session: Session, header: dict[str, Any], path: Path) -> None:
    for key, mine in _identity(session).items():
        if header.get(key) != mine:
            what = _difference(key, header, mine, session.family.name)
            raise UsageError(f"{path} was saved with {what}", f"the --{OPTIONS.get(key, key)} it was saved with")
    _check_system(session, header, path)


def _difference(key: str, header: dict[str, Any], mine: str, model: str) -> str:
    """Return what a file was saved with and this session lacks, for a message."""
    if key == "weights":
        return f"other weights than those of {model}"
    if key == "architecture":
        same = header["name"] == model
        return f"another configuration of {model}" if same else f"model {header['name']}, this session has {model}"
    if key != "settings":
        return f"{key} {header.get(key)}, this session has {mine}"
    theirs, here = json.loads(header["settings"]), json.loads(mine)
    names = [name for name in {**theirs, **here} if theirs.get(name) != here.get(name)]
    saved, now = (", ".join(f"{name}={of.get(name)}" for name in names) for of in (theirs, here))
    return f"{saved}, this session has {now}"


def _check_system(session: Session, header: dict[str, Any], path: Path) -> None:
    """Refuse a system prompt that comes too late: it stands before the first turn."""
    started = not header["first"] or header["media"]
    if started and session.system is not None and session.system != header["system"]:
        had = f"the system prompt {header['system']!r}" if header["system"] else "no system prompt"
        raise UsageError(f"{path} was started with {had}, which cannot change any more", "omit --system")


def _shares(session: Session, header: dict[str, Any], path: Path) -> None:
    """Give the managed layers the budgets with which the file fits, or say why it does not."""
    cache = session.cache
    if cache.total is None:
        return
    pairs = [(layer, values) for layer, values in zip(cache.layers, header["layers"], strict=True) if layer in cache.managed]
    fits = sum(values["budget"] or 0 for _, values in pairs) <= cache.total
    if session.policy.uneven and header["budgets_final"] and fits:
        for layer, values in pairs:
            layer.reset()
            layer.resize(values["budget"])
    longest = max(values["length"] for _, values in pairs)
    if any(values["length"] > (layer.budget or 0) for layer, values in pairs):
        raise UsageError(
            f"{path} holds {longest} tokens per layer, more than the KV budget of {session.budget}",
            f"--kv-budget {longest} or more",
        )
