"""`edgemllm archive`: what a session's archive holds; and the options with which sessions keep one."""
