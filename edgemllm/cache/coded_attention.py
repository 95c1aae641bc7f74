"""How a single query attends to keys and values of fewer bits without unpacking a whole layer of them first.

PyTorch's operators take longer to unpack than to attend in 16 bits (docs/measurements/kv-bits.md). So unpacking is a part of
kernels where both keys and values are codes: on a processor of the extra `cpu`, on CUDA of Triton's. Otherwise some slots at a
time are unpacked.
"""

from __future__ import annotations

from torch import Tensor

from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.compiled_attention import CompiledAttention
from edgemllm.cache.fused_attention import FusedAttention
from edgemllm.cache.kernel_attention import KernelAttention
from edgemllm.cache.layer import CacheLayer


def coded(layer: CacheLayer, query: Tensor) -> KernelAttention | BlockAttention | None:
    """Return what answers a query (B, H, q, D) from the codes of the layer; None for several tokens, or without codes."""
    if not layer.bits.coded or query.shape[2] > 1:
        return None
    if layer.bits.coded == ("keys", "values"):
        if FusedAttention.reads(layer, query):
            return FusedAttention(layer)
        if CompiledAttention.reads(layer, query):
            return CompiledAttention(layer)
    return BlockAttention(layer)
