"""`edgemllm stream`: a live source, watched for as long as it lasts."""
