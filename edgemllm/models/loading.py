"""From a name to a loaded model: the demo, a local folder or a hub id; safetensors only, quantised on request."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemllm.errors import MissingError, UsageError
from edgemllm.models import family_of
from edgemllm.models.base import ModelFamily

DEMO = Path(__file__).parents[1] / "assets" / "demo"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a hub repository: no pickles, no code."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk whose weights have not been read."""

    name: str
    folder: Path
    config: Any

    @property
    def family(self) -> type[ModelFamily]:
        return family_of(self.config.model_type)


def locate(name: str, offline: bool = False, trust_remote_code: bool = False) -> Checkpoint:
    """Find a checkpoint and read its configuration. Raises MissingError (no such model, missing files) and UsageError."""
    if name.startswith("random:"):
        raise UsageError("random models are not available in this version", "--model demo, a local folder or a hub id")
    folder = _folder(name, offline)
    _check_files(name, folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"model {name}: its config.json is not understood: {reason}") from error
    family_of(config.model_type).check(config)
    return Checkpoint(name, folder, config)


def load(
    checkpoint: Checkpoint,
    quant: str = "none",
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> ModelFamily:
    """Read the weights. `quant` is none, nf4 or int8; only the language model's layers are quantised."""
    import torch
    import transformers

    family = checkpoint.family
    options: dict[str, Any] = {}
    if quant != "none":
        options["quantization_config"] = _quantisation(quant, getattr(torch, dtype), family)
    auto = getattr(transformers, family.auto_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            model = auto.from_pretrained(
                checkpoint.folder,
                config=checkpoint.config,
                dtype=getattr(torch, dtype),
                device_map={"": device},
                use_safetensors=True,
                attn_implementation=family.attention,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                **options,
            )
        except (OSError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0]
            raise MissingError(f"model {checkpoint.name}: weights cannot be read: {reason}", "fetch it again") from error
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        checkpoint.folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    return family(model.eval(), tokenizer, str(checkpoint.folder))


def quantisation_of(model: Any) -> str:
    """What the loaded modules really are: nf4, int8 or none."""
    kinds = {type(module).__name__ for module in model.modules()}
    return "nf4" if "Linear4bit" in kinds else "int8" if "Linear8bitLt" in kinds else "none"


def _quantisation(quant: str, dtype: Any, family: type[ModelFamily]) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--quant {quant} needs bitsandbytes, which is not installed",
            "pip install 'edgemllm[quant]', or --quant none",
        ) from error
    from transformers import BitsAndBytesConfig

    untouched = [*family.vision_modules, "lm_head"]
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=untouched)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=untouched,
    )


def _folder(name: str, offline: bool) -> Path:
    if name == "demo":
        return DEMO
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingError(f"no model folder {name}", "give an existing folder, a hub id such as org/name, or --model demo")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        where = "not in the local cache (--offline)" if offline else "neither in the local cache nor to be fetched"
        reason = str(error).splitlines()[0] if not offline else "it was never downloaded here"
        raise MissingError(f"model {name} is {where}: {reason}", "fetch it once while online, or --model demo") from error


def _check_files(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise MissingError(f"model folder {name} has no config.json", "give the folder of a transformers checkpoint")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise MissingError(f"model folder {name} lacks {missing[0]}{more} of {len(shards)} weight files", "fetch it again")
    elif not (folder / "model.safetensors").is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        why = f" ({pickled} is a pickle, which can run code and is never loaded)" if pickled else ""
        raise MissingError(f"model folder {name} has no model.safetensors{why}", "use a safetensors checkpoint")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise MissingError(f"model folder {name} has no tokenizer.json", "fetch it again")
