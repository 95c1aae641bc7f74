"""lm-eval's own command line, with the model `edgemllm`: lm-eval finds no models of other packages by itself.

python -m edgemllm.harness run --model edgemllm --model_args pretrained=demo,policy=edge,kv_budget=512 --tasks wikitext
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import model_registry

if __name__ == "__main__":
    model_registry.register("edgemllm", target="edgemllm.harness.language:LanguageModel")
    cli_evaluate()
