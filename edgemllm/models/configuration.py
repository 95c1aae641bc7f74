"""Read and check a checkpoint's own description, config.json and its tokenizer, before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemllm.errors import MissingError, UsageError
from edgemllm.models.families import family_of
from edgemllm.models.spec import layer_config

MOST = {
    "num_hidden_layers": 1000, "depth": 1000,
    "num_attention_heads": 4096, "num_heads": 4096, "num_key_value_heads": 4096,
    "hidden_size": 1 << 18, "embed_dim": 1 << 18, "head_dim": 1 << 14,
    "intermediate_size": 1 << 22, "vocab_size": 1 << 24, "max_position_embeddings": 1 << 32,
}  # fmt: skip
"""Far above any model; what is larger is damage, and describing or building it would take hours."""

TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "tokenizer.json")


def read_config(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """Read the configuration of model `name`. Raises MissingError where it is damaged, UsageError if not supported."""
    from transformers import AutoConfig

    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = found["model_type"]
    except (ValueError, TypeError, KeyError) as error:
        what = "names no model_type" if isinstance(error, KeyError) else f"is not complete JSON: {error}"
        raise MissingError(f"model {name}: its config.json {what}", "fetch it again") from error
    if not _is_json(folder / "generation_config.json"):  # transformers would do without, and no answer would end
        raise MissingError(f"model {name}: its generation_config.json is not complete JSON", "fetch it again")
    family_of(model_type)
    for part in (found, *(each for each in found.values() if isinstance(each, dict))):
        refuse_oversized(name, part, "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        config.get_text_config()
    except Exception as error:  # whatever wrong values do in a configuration class
        raise MissingError(f"model {name}: its config.json is not understood: {_reason(error)}", "fetch it again") from error
    return check_config(name, config, "config.json")


def refuse_oversized(name: str, sizes: Mapping[str, Any], source: str) -> None:
    """Raise MissingError for a size above any model's, before transformers describes every layer of it one by one."""
    for key, most in MOST.items():
        value = sizes.get(key)
        if isinstance(value, int) and value > most:
            raise _no_size(name, key, value, source)


def _no_size(name: str, key: str, value: object, source: str) -> MissingError:
    return MissingError(f"model {name}: its {source} says {key} = {value!r}", "fetch it again")


def check_config(name: str, config: Any, source: str) -> Any:
    """The configuration, its sizes found sane. Raises MissingError naming its `source`, UsageError if not supported."""
    text = layer_config(config.get_text_config(), 0)
    for part in (text, layer_config(config.get_text_config(), -1), getattr(config, "vision_config", None)):
        for key, most in MOST.items():
            value = getattr(part, key, None)
            if value is not None and not (isinstance(value, int) and 1 <= value <= most):
                raise _no_size(name, key, value, source)
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    if heads % (kv_heads or heads) or (not getattr(text, "head_dim", None) and text.hidden_size % heads):
        raise MissingError(
            f"model {name}: {heads} heads do not go with "
            + (f"{kv_heads} heads of keys" if heads % (kv_heads or heads) else f"hidden_size = {text.hidden_size}")
            + f" in its {source}",
            "fetch it again",
        )
    family = family_of(config.model_type)
    family.check(config)
    return family.trimmed(config)


def read_tokenizer(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """Read the tokenizer in `folder` of model `name`. Raises MissingError naming the file that is damaged."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except ImportError as error:
        raise UsageError(
            f"model {name}: its tokenizer needs a package that is not installed: {_reason(error)}",
            "install it, or use a checkpoint with a tokenizer.json",
        ) from error
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = _reason(error)
        damaged = next((file for file in TOKENIZER if not _is_json(folder / file)), "tokenizer.json")
        raise MissingError(f"model {name}: its {damaged} cannot be read: {reason}", "fetch it again") from error


def _is_json(path: Path) -> bool:
    """Return whether the file, if there is one, holds JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
