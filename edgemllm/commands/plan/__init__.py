"""`edgemllm plan`: what fits, before anything is loaded."""
