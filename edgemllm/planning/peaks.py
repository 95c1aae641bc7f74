"""Peaks of memory besides weights and cache, as formulas on the safe side: encoding frames, one step of prefill."""

from __future__ import annotations

from edgemllm.cache.scratch import Scratch
from edgemllm.choices import ITEM_BYTES
from edgemllm.models.spec import ModelSpec, VisionSpec

FRAMES_AT_ONCE = 8
"""Frames that go through the vision tower together: bounds its memory."""
WEIGHT_BYTES = 12
"""Of one attention weight while a policy is shown it: float32 before and after the softmax, and what the policy makes of it."""

CONVERSION_BYTES = 32 << 20
"""Of unpacking slices of a GGUF file's tensors, what the heap keeps of that between the weights, and the tokenizer."""
QUANTISING = {"none": 0, "nf4": 1, "int8": 16}
"""Bytes of a value that quantising a matrix with bitsandbytes takes besides the matrix itself."""
PACKING_BYTES = 16 << 20
"""Of packing, or unpacking, a part of a matrix (packed.py)."""


def conversion_bytes(spec: ModelSpec, quant: str, dtype: str, resident: bool) -> int:
    """Return the most host memory that converting a GGUF file's weights, one tensor after the other, takes.

    `resident`: the result stays in the host's memory too, and is part of it.
    """
    matrix = max((shape.rows * shape.columns for shape in spec.linears), default=0) if quant != "none" else 0
    if spec.packs(quant):  # embeddings and head come first, while no linear layer is there
        ends = spec.embedding_parameters * ITEM_BYTES[dtype] - (spec.linear_bytes(quant, dtype) if resident else 0)
        staged = CONVERSION_BYTES + PACKING_BYTES + max(ends, matrix * ITEM_BYTES[dtype])
    else:
        staged = CONVERSION_BYTES + matrix * (ITEM_BYTES[dtype] + QUANTISING[quant])
    return staged + (spec.weights_bytes(quant, dtype) if resident else 0)


def vision_bytes(vision: VisionSpec | None, hidden: int, dtype: str, frames: int = 1) -> int:
    """Return the peak of encoding `frames` frames (or tiles) at once.

    Per patch: float32 pixels twice (processor and device); the hidden states that are kept (LLaVA: of all layers);
    in one block residual, norm, q, k, v, attention and output (7 hidden), gate, up and product (3 intermediate);
    two outputs as wide as the language model. The kernels of SDPA need no patch x patch matrix.
    """
    if vision is None:
        return 0
    values = vision.hidden * (vision.kept_states + 7) + 3 * vision.intermediate + 2 * hidden
    return frames * vision.patches * (values * ITEM_BYTES[dtype] + 2 * 4 * vision.patch_values)


def activation_bytes(spec: ModelSpec, quant: str, dtype: str, chunk: int, tokens: int, scratch: Scratch) -> int:
    """Return the peak of one prefill step: `chunk` new tokens against a cache of `tokens`, in one layer at a time."""
    fixed, per_token = activation_terms(spec, quant, dtype, chunk, scratch)
    return fixed + per_token * tokens


def activation_terms(spec: ModelSpec, quant: str, dtype: str, chunk: int, scratch: Scratch) -> tuple[int, int]:
    """Return (bytes at an empty cache, bytes for each cached token per layer).

    Per new token: residual, norm, attention, output (4 hidden), q, k, v before and after rotation, gate, up, product, and
    per-layer embeddings with what they are added to and made of.
    Per token seen by attention: its mask column, rotated key and the repeated key and value of grouped heads, and the
    weights that a policy watches; or, where it is more, what a compaction before takes. Keys and values of fewer bits are
    unpacked in the place of repeated ones; a decoded token unpacks less, or nothing, and its scores, weights and the partial
    sums of its kernels (fused.py) take less too. Once: the last row's logits in float32 and in dtype, and the scratch of
    quantised products: nf4 unpacks the largest matrix, int8 of bitsandbytes multiplies into 32-bit integers, packed weights
    take and give 16 bits and unpack a part.
    """
    item = ITEM_BYTES[dtype]
    heads = spec.heads + 2 * spec.kv_heads
    per_new = (4 * spec.hidden + 2 * heads * spec.head_dim + 3 * spec.intermediate + 4 * spec.lookup_width) * item
    attention = chunk * item + (spec.kv_heads + 2 * spec.heads) * spec.head_dim * item
    attention += spec.heads * min(scratch.watched, chunk) * WEIGHT_BYTES
    compaction = 4 * scratch.compaction_copies * spec.kv_heads * spec.head_dim + spec.heads * scratch.window * WEIGHT_BYTES
    per_token = max(attention, compaction)
    once = spec.vocab * (4 + item)
    if spec.packs(quant):
        once += PACKING_BYTES + max((chunk * 2 * (2 * shape.rows + shape.columns) for shape in spec.linears), default=0)
    elif quant == "nf4":
        once += max((shape.rows * shape.columns for shape in spec.linears), default=0) * item
    elif quant == "int8":
        once += max((chunk * (4 * shape.rows + shape.columns) for shape in spec.linears), default=0)
    return chunk * (per_new + per_token) + once, per_token
