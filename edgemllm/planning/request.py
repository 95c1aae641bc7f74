"""What the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemllm.choices import DEVICES, DTYPES, QUANTISATIONS
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail


@dataclass(frozen=True)
class Request:
    """What the options say, before anything is looked up."""

    model: str = "demo"
    profile: str = "auto"
    policy: str | None = None
    settings: Sequence[str] = ()
    kv_budget: str = "auto"
    quant: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    chunk: int | None = None
    offline: bool = False
    trust_remote_code: bool = False
    system: str | None = None
    detail: Detail = ANY
    focus: Sequence[str] = ()
    """What the cache is to look out for; an error with a policy that cannot."""

    known: Sequence[str] = ()
    """Questions that will be asked: the focus, unless another was asked for, of a policy that takes one."""

    kv_bits: str = "auto"

    def check(self) -> None:
        """Raise UsageError for a word that no option knows."""
        for name, value, choices in (
            ("quant", self.quant, QUANTISATIONS), ("dtype", self.dtype, DTYPES), ("device", self.device, DEVICES),
        ):  # fmt: skip
            if value not in ("auto", *choices):
                raise UsageError(f"--{name} {value} is unknown", f"one of auto, {', '.join(choices)}")
        if self.chunk is not None and self.chunk < 1:
            raise UsageError(f"--chunk {self.chunk} feeds nothing", "a number from 1 upwards")
