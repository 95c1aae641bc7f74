"""`edgemllm batch`: questions about many videos."""
