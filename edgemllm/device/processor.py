"""What the processor computes fast, from what Linux says about it; elsewhere nothing is known."""

from __future__ import annotations

import re
from pathlib import Path

MULTIPLIES_BFLOAT16 = "amx_bf16"
"""The one flag with which bfloat16 was measured to gain: AVX512-BF16 alone loses (docs/measurements/neighbours.md), and Arm was
not tried."""


def multiplies_bfloat16(root: Path = Path("/")) -> bool:
    """Return whether this processor has instructions for products in bfloat16, and gains from them. `root` holds proc/."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    flags = re.search(r"^flags\s*:(.*)", text, re.MULTILINE)
    return flags is not None and MULTIPLIES_BFLOAT16 in flags[1].split()
