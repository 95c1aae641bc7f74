"""The contract of a model family: a checkpoint becomes chunks and logits.

A family is one file in this folder that names the `model_type`s it serves. Only it knows modalities; everything after
`Chunk` is the same for all. A tiny model of every `model_type` is in tests/tiny.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from edgemllm.cache.attention import NAME
from edgemllm.cache.bits import UNQUANTISED, KVBits
from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.cache.kv_cache import KVCache
from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.rope import Rope
from edgemllm.cache.size import CacheSpec, LayerSpec
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models import tower
from edgemllm.models.spec import Sizes, attention_layers


class ModelFamily:
    """A loaded model with the interface that all families share."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """Values of `config.model_type` this family serves."""

    text_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox")
    """Language models whose attention and positions are verified to be handled correctly."""

    vision_types: ClassVar[tuple[str, ...]] = ()
    """Vision towers that this family feeds correctly."""

    since: ClassVar[str] = ""
    """The oldest transformers that runs it correctly chunk by chunk; empty: the oldest that edgemllm runs with."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    """The transformers class that loads a checkpoint."""

    vision_modules: ClassVar[tuple[str, ...]] = ()
    """Full module prefixes that are never quantised (a bare "vision_tower" matches nothing in bitsandbytes' skip list)."""

    attention: ClassVar[Any] = {"text_config": NAME, "vision_config": "sdpa"}
    """What to give transformers as `attn_implementation`: ours for the language model alone."""

    image_token: str | None
    video_token: str | None
    """What the chat template writes where an image or a video goes."""

    media_wrappers: Mapping[str, tuple[str, str]] = MappingProxyType({})
    """Text that a kind of media has before and after it, tokenised together with the neighbouring text."""

    def __init__(self, model: Any, tokenizer: Any, folder: str = "", detail: Detail | None = None) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.detail = detail or ANY
        self.config = model.config.get_text_config()
        self.rope = Rope(self.text_model.rotary_emb, axes=self.axes)
        self.image_token, self.video_token = self.word("image_token_id"), self.word("video_token_id")
        self.setup()

    def setup(self) -> None:
        """Set what a family keeps or has otherwise; called once, when everything above is in place."""

    def word(self, key: str) -> str | None:
        """Return the token whose id the configuration has under `key`; None where it has none."""
        index = getattr(self.model.config, key, None)
        return None if index is None else str(self.tokenizer.convert_ids_to_tokens(index))

    @property
    def name(self) -> str:
        """Return what to call it in a message: its folder, or the architecture."""
        return Path(self.folder).name if self.folder else str(self.model.config.model_type)

    # ---- the language model ------------------------------------------------------------------------------------

    axes: ClassVar[int] = 1

    sliding_rope: Rope | None = None
    """The rotation of sliding layers, where it is another than that of full ones."""

    @property
    def text_model(self) -> Any:
        """Return the decoder that takes `inputs_embeds`."""
        return self.model.model.language_model

    @property
    def device(self) -> torch.device:
        device: torch.device = self.text_model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        table = self.text_model.get_input_embeddings()
        dtype: torch.dtype = getattr(table, "dtype", table.weight.dtype)  # a packed table's weight is integers
        return dtype

    @property
    def vision_dtype(self) -> torch.dtype:
        """Return the dtype of vision tower and connector; of a model without eyes, that of the language model."""
        return self.dtype if self._seeing is None else self._seeing.dtype

    @cached_property
    def _seeing(self) -> Tensor | None:
        """Return one tensor of what is outside the language model."""
        return next(tower.tensors(self.model), None)

    @property
    def spec(self) -> CacheSpec:
        """Return the shape of the KV cache."""
        return self.cache_spec(self.config, self.dtype.itemsize)

    @classmethod
    def cache_spec(cls, text: Any, itemsize: int) -> CacheSpec:
        """Return the shape of the KV cache of a text configuration with `itemsize` bytes per number. Raises as `layers`."""
        return CacheSpec(cls.layers(text), itemsize, cls.axes)

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        """Return what each layer of a text configuration remembers. Raises UsageError for layers that cannot be served."""
        return attention_layers(text, cls.axes)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (B, q, E) into logits (B, q, V)."""
        logits: Tensor = self.model.lm_head(hidden)
        return logits

    @property
    def end_tokens(self) -> frozenset[int]:
        """Return the tokens that end an answer."""
        generation = getattr(self.model, "generation_config", None)
        ends = getattr(generation, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in (*ends, self.tokenizer.eos_token_id) if end is not None)

    def new_cache(self, policy: CachePolicy, budget: int | None, chunk: int, bits: KVBits = UNQUANTISED) -> KVCache:
        """Make an empty cache of `budget` tokens per layer (None: unbounded), to be fed at most `chunk` tokens at once."""
        layers = self.spec.layers
        return KVCache(policy, self.rope, [budget] * len(layers), layers, self.sliding_rope, chunk, bits)

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise UsageError for a configuration of these model types that this family, or this transformers, cannot serve."""
        if cls.since and Version(transformers.__version__) < Version(cls.since):
            raise UsageError(
                f"{config.model_type} needs transformers {cls.since} or newer, {transformers.__version__} is installed here",
                f"pip install 'transformers>={cls.since}'",
            )
        tower = getattr(config, "vision_config", None)
        parts = (("language model", config.get_text_config(), cls.text_types), ("vision tower", tower, cls.vision_types))
        for part, inner, known in parts:
            if inner is not None and inner.model_type not in known:
                raise UsageError(
                    f"{config.model_type} with a {part} of type {inner.model_type!r} is not supported",
                    f"supported here: {', '.join(known)}",
                )

    @classmethod
    def trimmed(cls, config: Any) -> Any:
        """Return the configuration without parts that this family never runs, which are then neither counted nor loaded."""
        return config

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        """Return what pictures take, from the configuration alone. Raises UsageError for a `detail` that it does not offer.

        Here: none is offered, as for the many that take pictures of one size.
        """
        if detail != ANY:
            raise UsageError(
                f"{config.model_type} takes pictures of one size: {detail} has no meaning",
                "omit it and lower --fps, or choose a model with dynamic resolution such as Qwen2.5-VL",
            )
        return Sizes()

    # ---- inputs ------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of already formatted text; nothing is added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: Sequence[int], offset: int) -> Chunk:
        """Return text tokens as a chunk that starts at position `offset`."""
        embeds = self.text_model.get_input_embeddings()(torch.tensor([list(ids)], dtype=torch.long, device=self.device))
        return Chunk.of_text(embeds, offset, self.axes)

    def video(self, interval: float | None = None) -> Clip:
        """Begin a video whose frames are `interval` seconds apart (None or 0: as their times say)."""
        return Clip(self)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        """Return frames of one video segment as a chunk, without what closes it."""
        raise UsageError(f"{self.config.model_type} models take no video", "choose a model with video input (edgemllm models)")

    def video_end(self, offset: int) -> Chunk | None:
        """Return what the architecture puts after the last frame of a video, if anything."""
        return None

    def image(self, frame: Frame, offset: int) -> Chunk:
        """Return one still image as a chunk."""
        raise UsageError(f"{self.config.model_type} models take no images", "choose a model with image input (edgemllm models)")

    def label(self, number: int) -> str:
        """Return what is written before the still image that is the conversation's `number`th, from 0."""
        return ""

    @cached_property
    def image_spec(self) -> Any:
        """Return how still images, or their tiles, are resized and normalised."""
        return self.picture_spec("image")

    @cached_property
    def video_spec(self) -> Any:
        """Return how frames of a video are resized and normalised."""
        return self.picture_spec("video")

    def picture_spec(self, kind: str) -> Any:
        """Return how images or video frames are prepared: a PixelSpec, or a PatchSpec for a tower of any resolution."""
        raise NotImplementedError

    def upload(self, pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Move pixels to the model's device, and to `dtype` (None: the vision tower's).

        It goes through pinned memory on CUDA, so that nothing waits for the copy.
        """
        pinned = pixels.pin_memory() if self.device.type == "cuda" else pixels
        return pinned.to(self.device, non_blocking=True).to(dtype or self.vision_dtype)

    def compose(self, pieces: Sequence[str | Tensor], offset: int, time: float = math.nan) -> Chunk:
        """Join text and features (q, E), the latter seen at `time`, in one chunk."""
        chunks: list[Chunk] = []
        for piece in pieces:
            place = chunks[-1].next_position if chunks else offset
            if isinstance(piece, str):
                chunks.append(self.text(self.tokenize(piece), place))
            else:
                chunks.append(self.vision(piece, place, torch.full((len(piece),), time)))
        return Chunk.join(chunks)

    def vision(self, features: Tensor, offset: int, time: Tensor) -> Chunk:
        """Return features (q, E) seen at `time` (q,) as a chunk with 1-D positions."""
        chunk = Chunk.of_text(features[None].to(self.dtype), offset, self.axes)
        modality = torch.full_like(chunk.modality, Modality.VISION)
        return Chunk(chunk.embeds, chunk.positions, modality, time[None].to(self.device))


class Clip:
    """A video on its way in, a few frames at a time: every piece gets what the whole video at once would give it."""

    counters: ClassVar[tuple[str, ...]] = ()
    """Attributes that say where the video stands, besides `waiting`: what a saved session keeps."""

    def __init__(self, family: ModelFamily) -> None:
        self.family: Any = family
        self.waiting: list[Frame] = []
        """Frames that lack a partner."""

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk | None:
        """Return the next frames as a chunk at stream position `offset`; None where they wait for more."""
        chunk: Chunk = self.family.frames(frames, offset)
        return chunk

    def end(self, offset: int) -> Chunk | None:
        """Return what is still waiting, and what closes the video."""
        chunk: Chunk | None = self.family.video_end(offset)
        return chunk
