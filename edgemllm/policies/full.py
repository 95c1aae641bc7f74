"""full: keep everything. The reference for every other policy; it grows with the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgemllm.policies.base import CachePolicy


@dataclass(frozen=True)
class Full(CachePolicy):
    """Never evicts. Given a KV budget it stops with an error where the budget ends."""

    bounded: ClassVar[bool] = False
