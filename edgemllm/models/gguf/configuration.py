"""From a GGUF file's metadata to a configuration of transformers, for the architectures whose tensors are known here.

transformers has such a conversion too; it leaves out what changes an answer: scaled rotary positions, sliding windows, a head
dimension that is not hidden / heads, the tokens that end an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgemllm.errors import MissingError
from edgemllm.models import shipped
from edgemllm.models.configuration import check_config, refuse_oversized
from edgemllm.models.gguf.header import ELSEWHERE, Header

NAMES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""What every file of these architectures says."""

VISION = ("clip", "qwen2vl", "qwen3vl", "qwen3vlmoe", "mllama", "cogvlm", "llava", "chameleon")
"""Architectures of vision towers, and of language models that are half of one with a tower."""


def config_of(name: str, header: Header) -> Any:
    """The configuration of a file. Raises MissingError for what is not a whole text model of a known architecture."""
    from transformers import AutoConfig

    _check(name, header)
    architecture = header.architecture
    missing = next((key for key in NAMES if header.own(key) is None), None)
    if missing is not None:
        raise MissingError(f"model {name} lacks {architecture}.{missing} in its metadata", "convert it again")
    common = {ours: header.own(key) for key, ours in NAMES.items()}
    refuse_oversized(name, common, "metadata")
    heads = int(common["num_attention_heads"])
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise MissingError(f"model {name} lacks the tensor token_embd.weight", "fetch or convert it again")
    common |= {
        "num_key_value_heads": header.own("attention.head_count_kv", heads),
        "head_dim": header.own("attention.key_length") or int(common["hidden_size"]) // heads,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(header) or None,
        "pad_token_id": None,
        "rope_parameters": _rope(name, header),
    }
    try:
        config = AutoConfig.for_model(**ARCHITECTURES[architecture](header, common))
    except Exception as error:  # whatever wrong values do in a configuration class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingError(f"model {name}: its metadata is not understood: {reason}", "convert it again") from error
    return check_config(name, config, "metadata")


def _end_tokens(header: Header) -> list[int]:
    """Ids of the tokens that end an answer: of the text, and of a turn."""
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    return sorted({int(header.metadata[key]) for key in keys if key in header.metadata})


def _check(name: str, header: Header) -> None:
    """MissingError for what cannot run: a part of a model, a vision tower, an architecture that is not known."""
    architecture, metadata = header.architecture, header.metadata
    if architecture in VISION or metadata.get("general.type") == "mmproj":
        raise MissingError(
            f"model {name} is GGUF with vision ({architecture}): edgemllm reads text models alone from GGUF",
            f"its safetensors checkpoint: --model {_nearest(header)}; edgemllm models lists those with vision",
        )
    if architecture not in ARCHITECTURES:
        raise MissingError(
            f"model {name}: GGUF of architecture {architecture!r} is not supported",
            f"one of {', '.join(ARCHITECTURES)}, or the model's safetensors checkpoint",
        )
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise MissingError(
            f"model {name} is one of {parts} parts of a split GGUF", "llama-gguf-split --merge, then --model THE_WHOLE_FILE"
        )


def _nearest(header: Header) -> str:
    """The shipped name with vision that shares most words with what the file calls itself."""
    said = [header.path.stem, header.architecture]
    said += [str(header.metadata.get(key, "")) for key in ("general.name", "general.basename", "clip.projector_type")]
    text = re.sub(r"[^a-z0-9.]+", "", " ".join(said).lower())

    def shared(known: str) -> int:
        return sum(len(word) for word in known.split("-") if word in text)

    return max((known for known in shipped.names() if shipped.sees(known)), key=shared)


def _rope(name: str, header: Header) -> dict[str, Any]:
    """The rotation of positions. Raises MissingError for a scaling that is not one of transformers'."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": float(header.own("rope.freq_base", 10_000.0))}
    kind, factor = header.own("rope.scaling.type", "none"), header.own("rope.scaling.factor", 1.0)
    if kind == "none" or factor == 1.0:
        return found
    if kind not in ("linear", "yarn") or header.own("rope.scaling.attn_factor", 1.0) != 1.0:
        raise MissingError(f"model {name} scales its positions by {kind!r}, which is not supported", ELSEWHERE)
    found |= {"rope_type": kind, "factor": float(factor)}
    original = header.own("rope.scaling.original_context_length")
    if kind == "yarn" and original:
        found["original_max_position_embeddings"] = int(original)
    return found


Values = dict[str, Any]


def _plain(model_type: str) -> Callable[[Header, Values], Values]:
    return lambda header, common: {"model_type": model_type, **common}


def _phi3(header: Header, common: Values) -> Values:
    rotated = int(header.own("rope.dimension_count", common["head_dim"]))
    rope = common["rope_parameters"] | {"partial_rotary_factor": rotated / int(common["head_dim"])}
    more = {"rope_parameters": rope, "sliding_window": header.own("attention.sliding_window") or None}
    return {"model_type": "phi3", **common, **more}


def _gemma3(header: Header, common: Values) -> Values:
    # llama.cpp knows by their layers that the 27B's queries are scaled otherwise (src/models/gemma3.cpp).
    scale = common["hidden_size"] // common["num_attention_heads"] if common["num_hidden_layers"] == 62 else common["head_dim"]
    rope = common["rope_parameters"]
    near = {"rope_type": "default", "rope_theta": float(header.own("rope.freq_base_swa", 10_000.0))}
    pattern = header.own("attention.sliding_window_pattern", 6)  # one in six sees everything; or a flag for each layer
    layers = pattern if isinstance(pattern, list) else [(i + 1) % pattern for i in range(common["num_hidden_layers"])]
    return {
        "model_type": "gemma3_text", **common,
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in layers],
        "sliding_window": header.own("attention.sliding_window"),
        "query_pre_attn_scalar": scale,
        "final_logit_softcapping": header.own("final_logit_softcapping") or None,
        "rope_parameters": {"full_attention": rope, "sliding_attention": near},
    }  # fmt: skip


ARCHITECTURES = {
    "llama": _plain("llama"),
    "qwen2": _plain("qwen2"),
    "qwen3": _plain("qwen3"),
    "phi3": _phi3,
    "gemma3": _gemma3,
}
"""Values of `general.architecture`; Mistral is a llama there."""
