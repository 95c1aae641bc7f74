"""Tiny models of transformers written as GGUF, as llama.cpp's conversion would, and what is left of their weights there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORDS = [*sorted(bytes_to_unicode().values()), "hi", "hih", "<|im_start|>", "<|im_end|>"]
END = WORDS.index("<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": len(WORDS), "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": None, "eos_token_id": END,
    "head_dim": 32,
}  # fmt: skip
ARCHITECTURES = {"gemma3_text": "gemma3"}


def write(path: Path, model: Any, kind: Kind = Kind.F32, metadata: dict[str, Any] | None = None, **extra: np.ndarray) -> Path:
    """Write `model` with matrices of a kind. `metadata` replaces or adds values (None leaves one out); `extra` are tensors."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": WORDS.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.padding_token_id": END,
        "tokenizer.chat_template": TEMPLATE,
        **(metadata or {}),
    }
    for key, value in found.items():
        if value is not None:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in WORDS])
    writer.add_token_scores([-float(number) for number in range(len(WORDS))])
    writer.add_token_merges(["h i", "hi h"])
    for key, parameter in model.named_parameters():
        name = names.get_name(key, (".weight", ".bias"))
        writer.add_tensor(name, *_stored(architecture, config, name, parameter.detach().float().numpy(), kind))
    for name, values in extra.items():
        writer.add_tensor(name.replace("__", "."), values)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def _stored(architecture: str, config: Any, name: str, values: np.ndarray, kind: Kind) -> tuple[np.ndarray, Any, Any]:
    """What `add_tensor` takes after the name."""
    if architecture == "llama" and ".attn_q." in name:
        values = _interleaved(values, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        values = _interleaved(values, config.num_key_value_heads)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        values = values + 1
    kind = kind if values.ndim > 1 else Kind.F32
    return gguf.quantize(np.ascontiguousarray(values), kind), None, kind


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """As in llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def after(model: Any, kind: Kind) -> Any:
    """The stock model with the weights that are left of them in `kind`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                left = gguf.dequantize(gguf.quantize(parameter.detach().float().numpy(), kind), kind)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(left)))
    return model
