"""edgemllm inside the evaluation harnesses of the field, lmms-eval and lm-eval (docs/evaluate.md)."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval's entry point group `lmms_eval.models` asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("edgemllm", chat_class_path="edgemllm.harness.multimodal.MultimodalModel")
