"""`edgemllm perplexity`: one endless text through the bounded cache."""
