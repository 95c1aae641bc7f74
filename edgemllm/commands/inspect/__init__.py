"""`edgemllm inspect`: pictures of attention and of what a policy kept."""
