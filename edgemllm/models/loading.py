"""From a name to a loaded model: the demo, a local folder, a hub id, a GGUF file or random weights; no pickles."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgemllm.choices import ITEM_BYTES, packs
from edgemllm.device.heap import release_freed_pages
from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.models import hub, prequantised, shipped, tower
from edgemllm.models.configuration import read_config, read_tokenizer
from edgemllm.models.facts import ModelFacts
from edgemllm.models.families import family_of
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.gguf import tokenizer as gguf_tokenizer
from edgemllm.models.gguf.configuration import config_of
from edgemllm.models.gguf.header import Header, is_gguf
from edgemllm.models.gguf.header import read as read_header
from edgemllm.models.packed import pack
from edgemllm.models.quantisation import method_of, recipe, require_bitsandbytes, stored_as, without_cpu_repacking
from edgemllm.models.spec import ModelSpec
from edgemllm.models.weights import check_complete

__all__ = ["DEMO", "Checkpoint", "load", "locate"]

DEMO = Path(__file__).parents[1] / "assets" / "demo"


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights have not been read, or made."""

    name: str
    folder: Path | None
    """None: random weights, or those of a GGUF file."""
    config: Any
    gguf: Header | None = None

    @property
    def family(self) -> type[ModelFamily]:
        return family_of(self.config.model_type)

    @property
    def prequantised_with(self) -> str:
        """The method it was quantised with beforehand, or nothing."""
        return method_of(self.config)

    @property
    def stored_as(self) -> str:
        """Its quantisation as `--quant` and our JSON name it, or nothing."""
        return stored_as(self.config)

    @cached_property
    def spec(self) -> ModelSpec:
        """Its sizes, as it will lie in memory."""
        spec = ModelSpec.from_config(self.config)
        return spec if self.folder is None else prequantised.sized(spec, self.config, self.folder)

    def facts(self, detail: Detail = ANY) -> ModelFacts:
        """Return what planning has to know of it. Raises UsageError for a `detail` or layers that are not offered."""
        sizes = self.family.sizes(self.config, detail)
        shape = self.family.cache_spec(self.config.get_text_config(), ITEM_BYTES["bfloat16"])
        return ModelFacts(self.spec, sizes, shape, self.prequantised_with, self.stored_as, converted=self.gguf is not None)


def locate(
    name: str, offline: bool = False, trust_remote_code: bool = False, say: Callable[[str], None] = lambda line: None
) -> Checkpoint:
    """Find a checkpoint and read its configuration. Raises MissingError (no such model, missing files) and UsageError."""
    from transformers import AutoConfig

    _follow_verbosity()
    if name.startswith(shipped.PREFIX):
        config = AutoConfig.for_model(**shipped.read(name.removeprefix(shipped.PREFIX)))
        return Checkpoint(name, None, config)
    if is_gguf(name):
        header = read_header(name)
        return Checkpoint(name, None, config_of(name, header), header)
    folder = DEMO if name == "demo" else hub.find(shipped.full_name(name, say), offline, say)
    hub.check_files(name, folder)
    config = read_config(name, folder, trust_remote_code)
    prequantised.check(name, config)
    return Checkpoint(name, folder, config)


def _follow_verbosity() -> None:
    """Silence transformers where its own TRANSFORMERS_VERBOSITY says so: also its progress bars, also if imported before."""
    from transformers.utils import logging

    if os.environ.get("TRANSFORMERS_VERBOSITY") == "error":
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@release_freed_pages()
def load(
    checkpoint: Checkpoint,
    quant: str = "none",
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    detail: Detail = ANY,
    vision_dtype: str | None = None,
) -> ModelFamily:
    """Read the weights, or make them. `quant` is none, nf4, int8 or int4; only the language model is quantised.

    `vision_dtype`: of everything outside the language model; None: `dtype`.
    A checkpoint that was quantised beforehand is loaded as it is, whatever `quant` says.
    """
    import torch
    import transformers

    family = checkpoint.family
    family.sizes(checkpoint.config, detail)  # refuses what is not offered, before anything is read
    auto = getattr(transformers, family.auto_class)
    kind = getattr(torch, dtype)
    quant = "none" if checkpoint.prequantised_with else quant
    require_bitsandbytes(quant, device)
    if checkpoint.gguf is not None:
        return _load_gguf(checkpoint, family, auto, quant, kind, device, detail)
    if checkpoint.folder is None:
        from edgemllm.models.random_weights import byte_tokenizer, random_model

        model = random_model(auto, checkpoint.config, quant, kind, device, family.attention)
        tokenizer, folder = byte_tokenizer(checkpoint.config), ""
    else:
        model = _read(checkpoint, family, auto, quant, kind, device, trust_remote_code)
        tokenizer = read_tokenizer(checkpoint.name, checkpoint.folder, trust_remote_code)
        folder = str(checkpoint.folder)
    if vision_dtype not in (None, dtype):
        tower.cast(model, getattr(torch, vision_dtype))
    return _ready(family, model, tokenizer, folder, detail)


def _read(
    checkpoint: Checkpoint, family: type[ModelFamily], auto: Any, quant: str, dtype: Any, device: str, trust_remote_code: bool
) -> Any:
    """Return the model of a folder in transformers format. Raises MissingError, and UsageError for a method not installed."""
    prequantised.require_packages(checkpoint.name, checkpoint.config)
    options: dict[str, Any] = {"config": checkpoint.config}
    packed = packs(quant, device)
    if quant != "none" and not packed:
        options["quantization_config"] = recipe(quant, dtype, checkpoint.config)
    with warnings.catch_warnings(), prequantised.reading(checkpoint.config, device) as more:
        warnings.simplefilter("ignore", FutureWarning)
        try:
            model, info = auto.from_pretrained(
                checkpoint.folder,
                dtype="auto" if packed else dtype,  # as it is stored, weights stay in the mapped file until they are packed
                device_map={"": device},  # never auto: on unified memory it would put layers on "the CPU", or on disk
                use_safetensors=True,
                attn_implementation=family.attention,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported and refused below
                **{**options, **more},
            )
        except Exception as error:
            refusal = _unreadable(checkpoint, error)
            if refusal is None:
                raise
            raise refusal from error
    check_complete(checkpoint.name, model, info)
    if packed:
        pack(model, quant, dtype)
    return model


def _unreadable(checkpoint: Checkpoint, error: Exception) -> EdgeError | None:
    """Return what an error of transformers' loading means for a user; None for memory, and for what is a fault of ours."""
    from torch import OutOfMemoryError

    reason, method = (str(error) or type(error).__name__).splitlines()[0], checkpoint.prequantised_with
    if isinstance(error, OutOfMemoryError | MemoryError):
        return None
    if method:
        words = f"model {checkpoint.name}: its weights in {method} cannot be read here: {reason}"
        return UsageError(words, "a checkpoint in 16 bits, and --quant")
    if isinstance(error, OSError | RuntimeError):
        return MissingError(f"model {checkpoint.name}: weights cannot be read: {reason}", "fetch it again")
    return None


def _load_gguf(
    checkpoint: Checkpoint, family: type[ModelFamily], auto: Any, quant: str, dtype: Any, device: str, detail: Detail
) -> ModelFamily:
    """The tokenizer before the weights: what its conversion takes for a moment does not come on top of them."""
    from edgemllm.models.gguf import weights

    name, header, config = checkpoint.name, checkpoint.gguf, checkpoint.config
    assert header is not None
    tokenizer = gguf_tokenizer.read_tokenizer(name, header, config.vocab_size)
    model = weights.load(name, header, auto, config, quant, dtype, device, family.attention)
    model.generation_config.eos_token_id = gguf_tokenizer.end_tokens(tokenizer, config)
    return _ready(family, model, tokenizer, str(header.path), detail)


def _ready(family: type[ModelFamily], model: Any, tokenizer: Any, folder: str, detail: Detail) -> ModelFamily:
    """The family of a model whose weights are in place."""
    return family(without_cpu_repacking(model.eval()), tokenizer, folder, detail)
