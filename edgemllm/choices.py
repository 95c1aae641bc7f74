"""What `--quant`, `--dtype`, `--device` and `--policy` may say besides `auto`: the one list of each."""

QUANTISATIONS = ("none", "nf4", "int8")
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DTYPES = tuple(ITEM_BYTES)
DEVICES = ("cpu", "cuda", "mps")
DEFAULT_POLICY = "inf-mllm"
"""Where neither the command line nor the device profile names one."""
