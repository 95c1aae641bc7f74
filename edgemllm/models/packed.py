"""Weights in 8 or 4 bits for a processor, through torch's own packed operators.

What a decoded token costs on a processor is reading weights. Up to some rows at once, torch's operators multiply packed weights
as they are; for the many rows of a prefill they are slower than unpacking a part of the matrix at a time and multiplying that.
The operators compute in bfloat16, in which activations come in and products go out; everything else keeps the model's dtype.
With AVX2 alone compiled loops multiply one row (loops/rows.py), by 8 bits in less than half of their time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgemllm.cache.straight import straight_layer
from edgemllm.loops.compiled import loops, threads_for

GROUP = 32
"""Values of a row that share a scale and a zero point in 4 bits."""
BLOCK = 64
"""Rows that torch's operator packs together in 4 bits."""
PART = 1 << 19
"""Values that are packed or unpacked at once: they stay in a processor's cache."""
LOW = 0x0F0F0F0F0F0F0F0F
"""The low halves of eight bytes."""
OUT = torch.bfloat16

ops: Any = torch.ops.aten


class PackedLinear(nn.Module):
    """A linear layer without its full weight; `few` rows at most are multiplied without unpacking."""

    few: ClassVar[int]
    unit: ClassVar[int] = 1
    """Rows that are packed together: what is missing in the last unit is filled with zeros."""
    weight: nn.Parameter
    scales: nn.Parameter

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else _constant(bias.detach())
        self.weight, self.scales = (_constant(part) for part in self._packed_whole(weight.detach()))
        self.padded = self.weight.shape[0] > self.out_features
        self.single: Callable[[Tensor], Tensor] | None = None
        """`row`, once it was asked for: what it looks up takes a head as long as a layer."""

    def _packed_whole(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight packed some rows at a time, which takes no more memory than the result, and its scales."""
        step = max(BLOCK, PART // self.in_features // BLOCK * BLOCK)
        whole, scales = weight.new_empty(0), []
        for start in range(0, len(weight), step):
            packed, scale = self.packed(weight[start : start + step])
            if not start:
                whole = packed.new_empty(len(weight) + -len(weight) % self.unit, *packed.shape[1:])
            whole[start : start + step] = packed
            scales.append(scale)
        return whole, self.joined(tuple(scales))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) times the weight (N, K), in the type of x."""
        if x.dim() != 2:
            return self.forward(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        if len(x) == 1:
            self.single = self.single or self.row()
            return self.single(x)
        rows = x.bfloat16().contiguous()
        few = rows.shape[0] <= self.few
        return self._finished((self.product()(rows) if few else self.unpacked_product(rows)).type_as(x))

    def row(self) -> Callable[[Tensor], Tensor]:
        """Return what `forward` does to one row (1, K), with the weight looked up: a small model's token feels each lookup."""
        if (packed := self.loop()) is None:
            product = self.product()
            return lambda x: self._finished(product(x.bfloat16()).type_as(x))
        multiply, in_parts, rows, unit = _loops().multiply, loops("team").in_parts_where_awake, len(packed.bias), self.unit

        def run(x: Tensor) -> Tensor:
            out = torch.empty(1, rows)
            row, whole = x.float().contiguous().numpy()[0], out.numpy()[0]
            threads = threads_for(self.in_features * rows)
            in_parts(lambda start, stop: multiply(row, packed, whole, start * unit, stop * unit), rows // unit, threads)
            return out[:, : self.out_features].type_as(x)

        return run

    def loop(self) -> Any:
        """Return the weight as compiled loops take it (loops/rows.py); None where there is no loop for it."""
        if (rows := _loops()) is None or (known := self.looped()) is None:
            return None
        bias = torch.zeros(len(self.weight))
        if self.bias is not None:
            bias[: self.out_features] = self.bias
        return rows.Packed(*known, bias.numpy())

    def _finished(self, out: Tensor) -> Tensor:
        if self.padded:
            out = out[:, : self.out_features]
        return out if self.bias is None else out + self.bias

    def unpacked_product(self, rows: Tensor) -> Tensor:
        """Multiply rows (m, K) by the weight, unpacked some of its rows at a time."""
        step = max(BLOCK, PART // self.in_features // BLOCK * BLOCK)
        spans = (slice(start, start + step) for start in range(0, len(self.weight), step))
        return torch.cat([_product(rows, self.columns(span)) for span in spans], 1)

    def dense(self) -> Tensor:
        """Return the weight (N, K) that the packed one stands for."""
        return self.columns(slice(None)).T[: self.out_features]

    def join(self, others: Sequence[Any]) -> PackedLinear | None:
        """Return this layer and others of the same input as one, whose rows they share; None where they do not fit together."""
        layers, whole = (self, *others), copy.copy(self)
        whole.single = None
        biases = [each.bias for each in layers if each.bias is not None]
        if any(type(each) is not type(self) or each.padded for each in layers) or len(biases) not in (0, len(layers)):
            return None
        whole._parameters = {**self._parameters, "bias": _constant(torch.cat(biases)) if biases else None}
        whole.out_features = sum(each.out_features for each in layers)
        whole.weight = _constant(torch.cat([each.weight for each in layers]))
        whole.scales = _constant(self.joined(tuple(each.scales for each in layers)))
        stop = 0
        for each in layers:
            start, stop = stop, stop + each.out_features
            each.weight, each.scales = (_constant(part) for part in whole.rows(slice(start, stop)))
            each.single = None
        return whole

    def packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return some rows of a weight packed, and their scales."""
        raise NotImplementedError

    def joined(self, scales: tuple[Tensor, ...]) -> Tensor:
        """Return the scales of all rows."""
        raise NotImplementedError

    def rows(self, span: slice) -> tuple[Tensor, Tensor]:
        """Return rows of the packed weight and their scales, as views."""
        raise NotImplementedError

    def product(self) -> Callable[[Tensor], Tensor]:
        """Return what multiplies rows (m, K) by the packed weight."""
        raise NotImplementedError

    def columns(self, span: slice) -> Tensor:
        """Return rows of the weight as columns (K, n)."""
        raise NotImplementedError

    def looped(self) -> tuple[Any, Any] | None:
        """Return the arrays `weight` and `scales` of `loops.rows.Packed`; None where loops do not read them."""
        raise NotImplementedError


class Int8Linear(PackedLinear):
    """8 bits, one scale a row."""

    few = 16

    def packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.float()
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(OUT).tiny).to(OUT)
        return (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales

    def joined(self, scales: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(scales)

    def rows(self, span: slice) -> tuple[Tensor, Tensor]:
        return self.weight[span], self.scales[span]

    def product(self) -> Callable[[Tensor], Tensor]:
        weight, scales = self.weight, self.scales
        if self.in_features % 16:  # torch's operator crashes there
            return self.unpacked_product
        return lambda rows: ops._weight_int8pack_mm.default(rows, weight, scales)

    def columns(self, span: slice) -> Tensor:
        return (self.weight[span].to(OUT) * self.scales[span, None]).T

    def looped(self) -> tuple[Any, Any]:
        return self.weight.numpy(), self.scales.float().numpy()


class Int4Linear(PackedLinear):
    """4 bits, a scale and a zero point for every group of a row: value = (code - 8) * scale + zero."""

    few = 48
    unit = BLOCK

    def packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = F.pad(weight.float(), (0, 0, 0, -len(weight) % BLOCK))
        codes, scales, zeros = _rounded(weight.view(len(weight), -1, GROUP))
        packed = ops._convert_weight_to_int4pack_for_cpu(codes.view(weight.shape), 1)
        block = _block_of_scales() or len(weight)
        return packed, torch.stack([part.unflatten(0, (-1, block)).transpose(1, 2) for part in (scales, zeros)], -1)

    def joined(self, scales: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(scales, 2 if len(scales[0]) == 1 else 0)

    def rows(self, span: slice) -> tuple[Tensor, Tensor]:
        return self.weight[span], self._scales(span)

    def _scales(self, span: slice) -> Tensor:
        """Return scales and zeros (blocks, G, n, 2) of rows in whole blocks, as a view."""
        if len(self.scales) == 1:
            return self.scales[:, :, span]
        start, stop, _ = span.indices(len(self.weight))
        rows = self.scales.shape[2]
        return self.scales[start // rows : stop // rows]

    def product(self) -> Callable[[Tensor], Tensor]:
        # torch takes scales for contiguous without looking, and those of a layer that was joined are not.
        weight, scales = self.weight, self.scales.transpose(0, 1).flatten(1, 2).contiguous()
        return lambda rows: ops._weight_int4pack_mm_for_cpu.default(rows, weight, GROUP, scales)

    def columns(self, span: slice) -> Tensor:
        block, apart = _layout()
        # Eight bytes at once; columns come first from here on, so that whole rows share what is done to them.
        eight = self.weight[span].view(-1, self.in_features, block // 2).view(torch.int64).transpose(0, 1)
        halves = [(half & LOW).view(torch.int8) for half in (eight, eight >> 4)]
        codes = torch.cat(halves, -1) if apart else torch.stack(halves, -1)
        values = codes.sub_(8).to(OUT).view(-1, GROUP, codes[0].numel())
        scales, zeros = self._scales(span).transpose(0, 1).flatten(1, 2)[:, None].unbind(-1)
        return torch.addcmul(zeros.contiguous(), values, scales.contiguous(), out=values).flatten(0, 1)

    def looped(self) -> tuple[Any, Any] | None:
        if len(self.scales) == 1:
            return None
        scales = self.scales.flatten().view(torch.int32).view(self.scales.shape[:-1])
        return self.weight.view(-1, self.in_features, scales.shape[2] // 2).numpy(), scales.numpy().view("uint32")


class PackedEmbedding(nn.Module):
    """An embedding table in 8 bits, one scale a row, or one for each of equal pieces of it; what comes out has `dtype`."""

    def __init__(self, table: nn.Embedding, rows: Int8Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.scales, self.dtype = rows.weight, rows.scales, dtype
        self.pieces = len(rows.weight) // table.num_embeddings
        """Rows of `weight` that make one of the table."""
        self.factor = float(getattr(table, "scalar_embed_scale", 1.0))
        """What Gemma multiplies its embeddings by."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., E) of ids (...)."""
        if self.pieces > 1:
            return self._looked_up(ids[..., None] * self.pieces + torch.arange(self.pieces, device=ids.device)).flatten(-2)
        return self._looked_up(ids)

    def _looked_up(self, ids: Tensor) -> Tensor:
        found = F.embedding(ids, self.weight).to(self.dtype) * self.scales[ids][..., None].to(self.dtype)
        return found if self.factor == 1.0 else found * torch.tensor(self.factor, dtype=self.dtype)


def packed(linear: nn.Linear, quant: str) -> PackedLinear:
    """Return a linear layer in `quant`; in 8 bits where its rows are not whole groups of 32."""
    made = Int4Linear if quant == "int4" and linear.in_features % GROUP == 0 else Int8Linear
    return made(linear.weight, linear.bias)


def ends_of(model: Any) -> list[Any]:
    """Return a model's embeddings, its output head, and per-layer embeddings where there are any."""
    found = (
        model.get_input_embeddings(), model.get_output_embeddings(),
        getattr(model.get_decoder(), "embed_tokens_per_layer", None),
    )  # fmt: skip
    return [module for module in found if module is not None]


def pack_embeddings(model: Any, dtype: torch.dtype) -> None:
    """Pack a model's output head and embeddings in 8 bits, as one where they are tied; per-layer ones have a scale a layer.

    In 4 bits they cost SmolLM2-135M 7% of perplexity, in 8 nothing (docs/log.md).
    """
    names = {id(module): name for name, module in model.named_modules()}
    table, head, *per_layer = ends_of(model)
    made = Int8Linear(head.weight, head.bias)
    own = made if head.weight is table.weight else Int8Linear(table.weight)
    model.set_submodule(names[id(head)], made)
    for other in per_layer:
        rows = other.weight.view(other.num_embeddings * model.get_decoder().config.num_hidden_layers, -1)
        model.set_submodule(names[id(other)], PackedEmbedding(other, Int8Linear(rows), dtype))
    model.set_submodule(names[id(table)], PackedEmbedding(table, own, dtype))


def pack(model: Any, quant: str, dtype: torch.dtype) -> None:
    """Pack a loaded model's language model layer by layer, and give all other parameters `dtype` and memory of their own."""
    for parent in reversed(list(model.get_decoder().modules())):  # what is inside first
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, packed(child, quant))
        straight_layer(parent)  # joins what can be, while only one layer's memory is held twice
    pack_embeddings(model, dtype)
    scales = {id(module.scales) for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding)}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in scales:
            parameter.data = parameter.data.to(dtype, copy=True)  # the file that it was mapped from can be closed


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply rows (m, K) by columns (K, n): in bfloat16 where the processor does, else in single precision."""
    return rows @ columns if _computes_half() else (rows.float() @ columns.float()).to(OUT)


@functools.cache
def _computes_half() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rounded(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (N, G, 32) of groups, their scales (N, G) and zeros: 15 steps from the least to the largest value."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).clamp_(min=torch.finfo(OUT).tiny).to(OUT)
    zero = (low + 8 * scale).to(OUT)
    codes = ((groups - zero) / scale).round_().clamp_(-8, 7).add_(8)
    return codes.to(torch.int32), scale[..., 0], zero[..., 0]


@functools.cache
def _loops() -> Any:
    """Return the compiled loops; None without Numba, and on processors on which they were not compared (docs/log.md)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    return loops("rows")


def _block_of_scales() -> int | None:
    """Return how many rows have their scales in 4 bits side by side, for loops; None: all of them, for torch's operator."""
    rows = _loops()
    return rows.BLOCK if rows is not None and _layout() == (rows.BLOCK, True) else None


@functools.cache
def _layout() -> tuple[int, bool]:
    """Return how this processor's operator packs: rows of a block, and whether a byte holds two that are half a block apart.

    So it is with AVX; elsewhere they are neighbours.
    """
    rows = torch.arange(BLOCK, dtype=torch.int32)[:, None].expand(BLOCK, GROUP)
    parts = [ops._convert_weight_to_int4pack_for_cpu(part.contiguous(), 1).flatten() & 15 for part in (rows % 16, rows // 16)]
    low = parts[0].int() + 16 * parts[1].int()
    return 2 * (int((low[1:] == 0).nonzero()[0]) + 1), int(low[1]) == 1
