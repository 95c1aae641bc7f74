"""The tokenizer and the chat template that are in a GGUF file."""

from __future__ import annotations

import json
from typing import Any

from edgemllm.errors import MissingError
from edgemllm.models.gguf.header import ELSEWHERE, Header

KINDS = ("gpt2", "llama")
"""BPE over bytes, and that of SentencePiece, as llama.cpp calls them."""
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>")
"""Tokens at which llama.cpp ends an answer too, whatever the file says (src/llama-vocab.cpp)."""


def read_tokenizer(name: str, header: Header, size: int) -> Any:
    """Return the tokenizer of a file, as transformers converts it, for a model of `size` tokens.

    Raises MissingError where the file has none that can be converted.
    """
    from transformers import PreTrainedTokenizerFast

    kind, end = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "eos_token_id"))
    if kind not in KINDS:
        raise MissingError(f"model {name} has a tokenizer of kind {kind!r}, not {' or '.join(KINDS)}", ELSEWHERE)
    # Not AutoTokenizer, which would take other files of the folder for this model's.
    try:
        found = PreTrainedTokenizerFast(name_or_path=str(header.path.parent), gguf_file=header.path.name)
        found = _without_strangers(found, size)
        if end is not None:  # transformers 5.17 takes the token of the beginning for it
            found.eos_token = found.convert_ids_to_tokens(int(end))
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"model {name}: its tokenizer cannot be read: {reason}", "convert it again") from error
    found.name_or_path = str(header.path)
    return found


def _without_strangers(tokenizer: Any, size: int) -> Any:
    """Return the tokenizer without what the conversion adds, such as `<|endoftext|>`: the model has no embedding of it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    known = tokenizer.get_vocab()
    if len(known) <= size:
        return tokenizer
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    inner["added_tokens"] = [token for token in inner["added_tokens"] if token["id"] < size]
    named = {key: word for key, word in tokenizer.special_tokens_map.items() if isinstance(word, str) and known[word] < size}
    found = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(inner)), **named)
    found.chat_template = tokenizer.chat_template
    return found


def end_tokens(tokenizer: Any, config: Any) -> list[int]:
    """Return the ids of the tokens that end an answer."""
    known = tokenizer.get_vocab()
    return sorted({*(config.eos_token_id or ()), *(known[word] for word in ENDS if word in known)})
