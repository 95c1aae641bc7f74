"""Sessions that stay: watched sources, questions on the way, sleep and restarts."""
