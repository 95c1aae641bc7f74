"""A model's files as a fingerprint, without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemllm.models.loading import Checkpoint

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Weights, configuration, tokenizer and chat template."""
BLOCK, SAMPLES = 4096, 256
"""Bytes that are read at once, and how many such places of a large file: training changes all of them."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a hash of a sample of every file that the model is read from; of a random one, of its configuration."""
    digest = hashlib.sha256()
    if checkpoint.gguf is not None:
        _take(digest, checkpoint.gguf.path)
    elif checkpoint.folder is None:
        digest.update(f"{checkpoint.name} {checkpoint.config.to_json_string()}".encode())
    else:
        for path in sorted(each for each in checkpoint.folder.iterdir() if each.suffix in READ):
            digest.update(path.name.encode())
            _take(digest, path)
    return digest.hexdigest()


def _take(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        for place in range(0, size, max(BLOCK, size // SAMPLES)):
            file.seek(place)
            digest.update(file.read(BLOCK))
