"""What a policy's setting may be, beside its type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, as in `Annotated[int, Range(1)]`; `policies.build` refuses all others."""

    least: float = 0
    most: float = math.inf
    above: bool = False
    """`least` itself is refused."""
    odd: bool = False

    def __contains__(self, value: float) -> bool:
        low = self.least < value if self.above else self.least <= value
        return low and value <= self.most and value < math.inf and not (self.odd and value % 2 == 0)

    def __str__(self) -> str:
        low = f"above {self.least}" if self.above else f"from {self.least}"
        return f"{'odd, ' if self.odd else ''}{low} {'upwards' if self.most == math.inf else f'to {self.most}'}"


Share = Annotated[float, Range(0, 1)]
"""A setting from 0 to 1."""
Count = Annotated[int, Range(1)]
"""A setting from 1 upwards."""
