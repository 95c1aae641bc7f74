"""Cosmos3 Edge: a dense decoder with interleaved M-RoPE, and a SigLIP 2 tower of any resolution, one frame at a time.

Like Qwen3-VL, with a time stamp before every frame and patches whose values lie channel by channel last. The parts of the
checkpoint that generate video and actions are not loaded, as in transformers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edgemllm.models.families.qwen_vl import QwenVLFamily


class Cosmos3EdgeFamily(QwenVLFamily):
    """Cosmos3-Edge checkpoints."""

    model_types: ClassVar[tuple[str, ...]] = ("cosmos3_edge",)
    text_types: ClassVar[tuple[str, ...]] = ("cosmos3_edge_text",)
    vision_types: ClassVar[tuple[str, ...]] = ("cosmos3_edge_vision",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.visual", "model.projector")
    since: ClassVar[str] = "5.23"

    @torch.inference_mode()
    def features(self, flat: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, None]:
        seen = self.encoded(self.model.model.visual, flat, grid).last_hidden_state
        return self.model.model.projector(seen), None
