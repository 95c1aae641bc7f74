"""Build a model module by module, so that it fits wherever its weights fit: random ones, and those of a GGUF file.

transformers' own loading of safetensors does the same for checkpoints in its format.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from edgemllm.cache.straight import straight_layer
from edgemllm.choices import packs
from edgemllm.models.packed import ends_of, pack_embeddings
from edgemllm.models.quantisation import quantised, require_bitsandbytes

Fill = Callable[[nn.Module, Callable[[nn.Module], None]], None]
"""Gives a module's own parameters and buffers their values; the second argument initialises them as the architecture does."""


def assemble(model: Any, quant: str, dtype: torch.dtype, device: str, fill: Fill) -> Any:
    """Give a model on the `meta` device memory and values, and quantise the decoder's linear layers one by one.

    Embeddings and output head come first: where they are packed too, they are unpacked while nothing else is there.
    """
    require_bitsandbytes(quant, device)
    inside = {id(module) for module in model.get_decoder().modules()}
    made: dict[int, nn.Parameter] = {}
    ends = ends_of(model)
    parts = [*_modules(model, model), (model, "", model, model._init_weights)]
    first = [part for part in parts if any(part[2] is end for end in ends)]
    for _, _, module, initialise in first:
        _materialise(module, torch.device(device), made)
        fill(module, initialise)
    if packs(quant, device):
        pack_embeddings(model, dtype)
        for end in ends:
            _let_go(end)
    for parent, name, module, initialise in (part for part in parts if part not in first):
        _materialise(module, torch.device(device), made)
        fill(module, initialise)
        if quant != "none" and id(module) in inside and type(module) is nn.Linear:
            setattr(parent, name, quantised(module, quant, dtype))
            _let_go(module)
        straight_layer(module)  # joins what was packed, while only one layer's memory is held twice
    model.generation_config.eos_token_id = model.config.get_text_config().eos_token_id
    return model


def _let_go(module: Any) -> None:
    """Free the weight of a module that was replaced: a loop and its table of parameters still hold on to it."""
    module.weight.data = module.weight.new_empty(0)


def on_meta(auto: Any, config: Any, dtype: torch.dtype, attention: Any) -> Any:
    """A model that has shapes and no memory. auto: the transformers class, such as AutoModelForCausalLM."""
    with torch.device("meta"):
        return auto.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)


def _modules(module: nn.Module, owner: Any) -> Iterator[tuple[nn.Module, str, nn.Module, Any]]:
    """(parent, name, module, how it is initialised): a model inside a model has a way of its own."""
    from transformers import PreTrainedModel

    for name, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        yield from _modules(child, inner)
        yield module, name, child, inner._init_weights


@torch.no_grad()
def _materialise(module: nn.Module, device: torch.device, made: dict[int, nn.Parameter]) -> None:
    """Give a module's own parameters and buffers memory; a parameter that is shared stays shared."""
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in made:
            # Ones are right for the scale of a norm that no initialiser knows; everything else is initialised next.
            empty = torch.ones_like(parameter, device=device)
            made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
        module._parameters[name] = made[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = torch.zeros_like(buffer, device=device)
