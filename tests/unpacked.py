"""What Triton's kernels compute (cache/fused_kernels.py), by PyTorch's operators on all slots at once."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemllm.cache.bits import Channels, dequantise
from edgemllm.cache.rope import rotate


def scores(
    codes: Tensor, scales: Tensor, width: Tensor | None, mean: Tensor | None, cos: Tensor, sin: Tensor,
    query: Tensor, out: Tensor, start: int, stop: int,
) -> None:  # fmt: skip
    length = out.shape[2]
    keys = dequantise(codes, scales, 8 * codes.shape[3] // query.shape[2], torch.float32)[:, :, :length]
    if width is not None and mean is not None:
        keys = Channels(mean.float(), width.float()).restored(keys)
    keys = rotate(keys, (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).flatten(0, 1)
    out[:, :, start:stop] = (query @ keys.mT)[:, :, start:stop]


def weighted(codes: Tensor, scales: Tensor, weights: Tensor, width: int, start: int, stop: int) -> Tensor:
    values = dequantise(codes, scales, 8 * codes.shape[3] // width, torch.float32).flatten(0, 1)
    return weights[:, :, start:stop] @ values[:, start:stop]
