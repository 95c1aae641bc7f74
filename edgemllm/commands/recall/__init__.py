"""`edgemllm recall`: what a policy still knows of a long stream."""
