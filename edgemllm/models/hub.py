"""Where checkpoints are: local folders, and the cache of the Hugging Face hub (`HF_HOME`), with or without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from edgemllm.errors import MissingError, nearest, opening
from edgemllm.models import shipped

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a hub repository: no pickles, no code."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find(name: str, offline: bool, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return a checkpoint's folder, downloaded if need be, which is first reported to `say`. Raises MissingError."""
    path = Path(name).expanduser()
    with opening(name, MissingError):
        if path.is_dir():
            return path
        if path.exists():
            raise MissingError(f"model {name} is a file", f"its folder: --model {path.parent}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingError(
            f"no model folder {name}{nearest(name, ['demo', *shipped.names()])}",
            "give an existing folder, a hub id such as org/name, a NAME or random:NAME of `edgemllm models`, or --model demo",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            if offline:
                raise
        say(f"fetching {name} into the hub cache ...")
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        where = "not in the local cache (--offline)" if offline else "neither in the local cache nor to be fetched"
        reason = str(error).splitlines()[0] if not offline else "it was never downloaded here"
        raise MissingError(f"model {name} is {where}: {reason}", "fetch it once while online, or --model demo") from error


def cached() -> dict[str, int]:
    """Return the hub ids of models in the cache and their bytes on disk; empty where there is no cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return {}
    return {repo.repo_id: repo.size_on_disk for repo in found.repos if repo.repo_type == "model"}


def check_files(name: str, folder: Path) -> None:
    """Raise MissingError naming what a checkpoint's folder lacks, before anything is read."""
    if not (folder / "config.json").is_file():
        raise MissingError(f"model folder {name} has no config.json", "give the folder of a transformers checkpoint")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            foreign = next((shard for shard in shards if Path(shard).name != shard), None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MissingError(f"{index} is not a complete index of weights: {error}", "fetch it again") from error
        if foreign is not None:
            raise MissingError(f"{index} names {foreign!r}, which is no file of its folder", "fetch it again")
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise MissingError(f"model folder {name} lacks {missing[0]}{more} of {len(shards)} weight files", "fetch it again")
        weights = [folder / shard for shard in shards]
    elif (folder / "model.safetensors").is_file():
        weights = [folder / "model.safetensors"]
    else:
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        why = f" ({pickled} is a pickle, which can run code and is never loaded)" if pickled else ""
        raise MissingError(f"model folder {name} has no model.safetensors{why}", "use a safetensors checkpoint")
    for path in weights:
        _check_whole(name, path)
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise MissingError(f"model folder {name} has no tokenizer.json", "fetch it again")


def _check_whole(name: str, path: Path) -> None:
    """Raise MissingError for a safetensors file shorter than its header says: a cut download is named at once."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        needed = (
            8 + length + max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingError(f"model folder {name}: {path.name} ({size} bytes) is damaged", "fetch it again") from error
    if size < needed:
        raise MissingError(f"model folder {name}: {path.name} has {size} of {needed} bytes", "fetch it again")
