"""`edgemllm models`: what there is to load."""
