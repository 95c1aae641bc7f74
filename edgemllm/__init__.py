"""edgemllm: multimodal language models over endless video and text, in a KV cache of fixed size."""

__version__ = "0.1.0"
