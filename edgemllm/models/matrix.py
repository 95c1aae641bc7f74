"""The bytes that a weight matrix takes, unquantised and quantised."""

from __future__ import annotations

from edgemllm.choices import ITEM_BYTES, QUANTISATIONS
from edgemllm.errors import UsageError


def matrix_bytes(rows: int, columns: int, quant: str, dtype: str) -> int:
    """Return the bytes that one weight matrix takes, as bitsandbytes 0.50 really stores it (a test compares)."""
    count = rows * columns
    if quant == "nf4":
        # Half a byte a weight; a byte of scale for 64 of them; a float for 256 of those; two code tables and an offset.
        blocks = -(-count // 64)
        return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    if quant == "int8":
        return count + 4 * rows  # one float of scale a row
    if quant == "none":
        return count * ITEM_BYTES[dtype]
    raise UsageError(f"not a quantisation: '{quant}'", f"--quant takes auto, {', '.join(QUANTISATIONS)}")


def packed_bytes(rows: int, columns: int, quant: str, dtype: str) -> int:
    """Return the bytes that one packed weight matrix takes, as packed.py stores it (a test compares)."""
    if quant == "int4" and columns % 32 == 0:
        whole = -(-rows // 64) * 64  # half a byte a weight; scale and zero point of 2 bytes each for 32 of them
        return whole * columns // 2 + whole * columns // 32 * 4
    return rows * columns + 2 * rows  # a scale of 2 bytes a row
