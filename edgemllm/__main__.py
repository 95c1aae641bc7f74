"""`python -m edgemllm`."""

from edgemllm.cli.main import main

main()
