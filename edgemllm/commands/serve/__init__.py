"""`edgemllm serve`: an OpenAI-compatible server, its sessions and its page."""
