"""What `--quant`, `--dtype`, `--device` and `--policy` may say besides `auto`: the one list of each."""

QUANTISATIONS = ("none", "nf4", "int8", "int4")
PACKED = ("int8", "int4")
"""Those that a CPU has packed weights for, through torch alone; the others, and other devices, take bitsandbytes."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DTYPES = tuple(ITEM_BYTES)
DEVICES = ("cpu", "cuda", "mps")
DEFAULT_POLICY = "inf-mllm"
"""Where neither the command line nor the device profile names one."""


def packs(quant: str, device: str) -> bool:
    """Return whether `quant` means torch's packed weights on this device."""
    return device == "cpu" and quant in PACKED
