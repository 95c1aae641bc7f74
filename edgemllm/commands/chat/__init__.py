"""`edgemllm chat`: questions about a video, images and text."""
