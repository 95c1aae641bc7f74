"""`--kv-budget 2048|512MiB|25%|auto`: what the user asks the KV cache to be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgemllm.device.memory import human_bytes, parse_bytes
from edgemllm.errors import UsageError

WHAT_TO_TYPE = "--kv-budget takes tokens per layer (2048), bytes over all layers (512MiB), a share (25%) or auto"


@dataclass(frozen=True)
class KVBudget:
    """One of four ways to say how large the cache may be."""

    kind: Literal["tokens", "bytes", "share", "auto"] = "auto"
    """tokens per layer, bytes over all layers, share of what `full` would hold, or what the device has left."""

    amount: int = 0
    """Tokens or bytes; a share in millionths; 0 for auto."""

    def __str__(self) -> str:
        if self.kind == "share":
            return f"{self.amount / 10_000:g}%"
        if self.kind == "bytes":
            return human_bytes(self.amount).replace(" ", "")
        return str(self.amount) if self.kind == "tokens" else "auto"


def parse_kv_budget(text: str) -> KVBudget:
    """Return the value of `--kv-budget`. Raises UsageError with what to type instead."""
    value = text.strip().lower()
    if value in ("", "auto"):
        return KVBudget()
    if re.fullmatch(r"\d+", value):
        return KVBudget("tokens", _above_zero(int(value), text))
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value)
    if share:
        millionths = _above_zero(round(float(share.group(1)) * 10_000), text)
        if millionths > 1_000_000:
            raise UsageError(
                f"a KV budget of {text} is more than everything", "a share goes up to 100%, which is what `full` holds"
            )
        return KVBudget("share", millionths)
    try:
        amount = parse_bytes(value)
    except UsageError:
        raise UsageError(f"not a KV budget: '{text}'", WHAT_TO_TYPE) from None
    if re.search(r"[a-z]", value) is None:  # 2048.5 would silently mean bytes
        raise UsageError(f"not a KV budget: '{text}'", WHAT_TO_TYPE)
    return KVBudget("bytes", _above_zero(amount, text))


def _above_zero(amount: int, text: str) -> int:
    if amount <= 0:
        raise UsageError(f"a KV budget of {text} keeps nothing", WHAT_TO_TYPE)
    return amount
