"""Random weights for any configuration, made and quantised module by module: fits wherever the real checkpoint fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from edgemllm.models.quantisation import quantised, require_bitsandbytes


def random_model(auto: Any, config: Any, quant: str, dtype: torch.dtype, device: str, attention: Any) -> Any:
    """A model of `config` as its architecture initialises it, on `device`; only the decoder's linear layers are quantised.

    auto: the transformers class, such as AutoModelForCausalLM. Seeded: the same weights every time on one device.
    """
    if quant != "none":
        require_bitsandbytes(quant)
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)
    inside = {id(module) for module in model.get_decoder().modules()}
    torch.manual_seed(0)
    made: dict[int, nn.Parameter] = {}
    for parent, name, module, initialise in [*_modules(model, model), (model, "", model, model._init_weights)]:
        _materialise(module, torch.device(device), made)
        initialise(module)
        if quant != "none" and id(module) in inside and type(module) is nn.Linear:
            setattr(parent, name, quantised(module, quant, dtype))
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    return model


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
