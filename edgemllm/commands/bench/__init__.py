"""`edgemllm bench`: speed and memory of every combination."""
