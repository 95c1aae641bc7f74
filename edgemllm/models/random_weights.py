"""A model of random weights and its tokenizer, for any configuration.

Weights are made and quantised module by module, so that they fit wherever the real checkpoint fits. The tokenizer has one
token a byte, and whatever special tokens the configuration names; ids that mean nothing decode to their number, so that a
random model's answer can be seen.
"""

from __future__ import annotations

from typing import Any

import torch

from edgemllm.models.assembly import assemble, on_meta

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}IMAGE{% else %}VIDEO{% endif %}"
    "{% endfor %}{% endif %}<end>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = (
    "<image>",
    "<video>",
    "<img>",
    "</img>",
    "<fake_token_around_image>",
    "<global-img>",
    "<slice>",
    "</slice>",
    "<image_id>",
    "</image_id>",
)
"""Special tokens that families write; those without an id in the configuration get a free one."""


def random_model(auto: Any, config: Any, quant: str, dtype: torch.dtype, device: str, attention: Any) -> Any:
    """Make a model of `config` as its architecture initialises it; only the decoder's linear layers are quantised.

    auto: the transformers class, such as AutoModelForCausalLM. Seeded: the same weights every time on one device.
    """
    model = on_meta(auto, config, dtype, attention)
    torch.manual_seed(0)
    return assemble(model, quant, dtype, device, lambda module, initialise: initialise(module))


def byte_tokenizer(config: Any) -> Any:
    """Make a fast tokenizer with a chat template for any configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = config.get_text_config()
    special = _special(config)
    free = (number for number in range(text.vocab_size) if number not in special.values())
    vocabulary = dict(special)
    for word in (*WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())):
        if word not in vocabulary:
            vocabulary[word] = next(free)
    special |= {word: vocabulary[word] for word in WORDS}
    vocabulary |= {f"Ġ{number}": number for number in free}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    fast.chat_template = _template(config)
    return fast


def _special(config: Any) -> dict[str, int]:
    """Return token and id of what the configuration names."""
    ends = config.get_text_config().eos_token_id
    found = {"<end>": (ends[0] if isinstance(ends, list) else ends) or 0}
    for key, word in (
        ("image_token_id", "<image>"), ("video_token_id", "<video>"), ("vision_start_token_id", "<vision>"),
        ("vision_end_token_id", "</vision>"), ("boi_token_id", "<start_of_image>"), ("eoi_token_id", "<end_of_image>"),
    ):  # fmt: skip
        number = getattr(config, key, None)
        if number is not None:
            found[word] = int(number)
    return found


def _template(config: Any) -> str:
    """Write what the real templates do: Qwen-VL wraps its media, Gemma 3 writes the token before a picture."""
    if getattr(config, "boi_token_id", None) is not None and getattr(config, "video_token_id", None) is None:
        return TEMPLATE.replace("IMAGE", "<start_of_image>").replace("VIDEO", "")
    wrapped = getattr(config, "vision_start_token_id", None) is not None
    before, after = ("<vision>", "</vision>") if wrapped else ("", "")
    return TEMPLATE.replace("IMAGE", f"{before}<image>{after}").replace("VIDEO", f"{before}<video>{after}")
