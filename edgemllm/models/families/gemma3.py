"""Gemma 3 (arXiv 2503.19786): SigLIP squares of 256 tokens that see each other both ways, local and global layers.

Five of six layers slide over the newest 1024 tokens with a rotation of their own: a policy decides in the sixth alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.attention import NAME
from edgemllm.cache.chunk import Chunk
from edgemllm.cache.rope import Rope
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import PixelSpec, pixels, processor_config

HALF = (0.5, 0.5, 0.5)
BILINEAR = 2


class Gemma3TextFamily(ModelFamily):
    """Gemma 3 without eyes (1B)."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)
    text_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    attention: ClassVar[Any] = NAME

    example: ClassVar[str] = "google/gemma-3-4b-it"
    """A checkpoint that is supported, for errors."""

    def setup(self) -> None:
        rotary = self.text_model.rotary_emb
        self.rope = Rope(rotary, layer_type="full_attention")
        self.sliding_rope = Rope(rotary, layer_type="sliding_attention")

    @classmethod
    def check(cls, config: Any) -> None:
        super().check(config)
        text = config.get_text_config()
        odd = cls.unknown(text)
        if odd or set(text.layer_types) != {"full_attention", "sliding_attention"}:
            what = ", ".join(odd) or "layers of one kind"
            raise UsageError(f"{config.model_type} with {what} is not supported", f"{cls.example} is")

    @classmethod
    def unknown(cls, text: Any) -> list[str]:
        """Return what a text configuration asks for and is not offered."""
        return [name for name in ("attn_logit_softcapping", "use_bidirectional_attention") if getattr(text, name, None)]

    @property
    def text_model(self) -> Any:
        return self.model.model

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Gemma3Family(Gemma3TextFamily):
    """Gemma 3 with still images (4B and larger); it was trained on no video."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    vision_types: ClassVar[tuple[str, ...]] = ("siglip_vision_model",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")
    auto_class: ClassVar[str] = ModelFamily.auto_class
    attention: ClassVar[Any] = ModelFamily.attention

    def setup(self) -> None:
        super().setup()
        opening, closing = self.word("boi_token_id"), self.word("eoi_token_id")
        self.image_token = opening  # what the template writes; the processor puts the rest around the picture
        self.media_wrappers = {"image": (f"\n\n{opening}", f"{closing}\n\n")}

    @property
    def text_model(self) -> Any:
        return self.model.model.language_model

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)  # transformers caps those of the text model alone
        return logits

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        tokens = int(config.mm_tokens_per_image)
        return replace(super().sizes(config, detail), image_tokens=tokens + 4, indivisible=tokens)

    def picture_spec(self, kind: str) -> PixelSpec:
        if processor_config(self.folder, kind).get("do_pan_and_scan"):
            raise UsageError("pan and scan is not supported", "set do_pan_and_scan to false in preprocessor_config.json")
        side = self.model.config.vision_config.image_size
        return PixelSpec.from_folder(self.folder, kind, PixelSpec(side, side, HALF, HALF, resample=BILINEAR))

    def image(self, frame: Frame, offset: int) -> Chunk:
        batch = self.upload(pixels([frame.pixels], self.image_spec))
        features = self.model.model.get_image_features(batch, return_dict=True).pooler_output[0]
        seen = self.vision(features, offset, torch.full((len(features),), torch.nan))
        block = torch.full_like(seen.modality, offset, dtype=torch.long)
        return Chunk(seen.embeds, seen.positions, seen.modality, seen.time, block=block)
