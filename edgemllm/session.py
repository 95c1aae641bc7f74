"""A session: one conversation or stream, that is a model, a bounded cache, and what comes next."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgemllm.cache.attention import forward
from edgemllm.cache.chunk import Chunk
from edgemllm.cache.decode import Decoder
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.inputs.frame import Frame
from edgemllm.models.base import Clip, ModelFamily
from edgemllm.models.chat_format import ChatFormat
from edgemllm.policies.base import CachePolicy

FRAMES_AT_ONCE = 8
"""Frames that go through the vision tower together: bounds its memory."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Meter:
    """Running counts of a session, and the seconds they took."""

    frames: int = 0
    frame_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    video_s: float = 0.0
    """Seconds of the latest video shown so far."""
    skipped: int = 0
    """Frames of a stream left out because they hardly differed from the one before."""
    dropped: int = 0
    """Frames of a live stream that the model was too slow for."""

    def rates(self) -> dict[str, float]:
        """The `speed` object of the JSON output."""

        def rate(count: int, seconds: float) -> float:
            return round(count / seconds, 2) if seconds else 0.0

        return {
            "prefill_tps": rate(self.prefill_tokens, self.prefill_s),
            "decode_tps": rate(self.decode_tokens, self.decode_s),
            "frames_per_s": rate(self.frames, self.frame_s),
        }


@dataclass
class Session:
    """Feeds chunks through the model and answers questions.

    `budget` is the slots of each layer (None: unbounded), `chunk` the most tokens of one forward pass.
    Raises DoesNotFitError where the budget is below what policy and chunk need.
    """

    family: ModelFamily
    policy: CachePolicy
    budget: int | None
    chunk: int = 512
    system: str | None = None
    on_step: Callable[[Session], None] = lambda session: None
    """Called after every forward pass and token, for the display."""
    meter: Meter = field(default_factory=Meter)
    position: int = 0
    """The next free place in the stream; positions are ours, nothing is read from the model."""
    first: bool = True
    """Nothing was asked yet."""
    media: list[str] = field(default_factory=list)
    """Media already shown in the turn that the next question closes."""
    clip: Clip | None = None
    """The running video, which `see` goes on with."""
    stopped: bool = False
    """Set by `stop()`; ends the running answer or video at the next token or frame."""
    last: Tensor | None = field(default=None, repr=False, compare=False)
    """(B, 1, E), the hidden state of the newest token: what predicts the next one."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < self.policy.minimum() + 1:
            raise DoesNotFitError(
                f"a KV budget of {self.budget} tokens a layer is too small: the policy needs at least "
                f"{self.policy.minimum() + 1}",
                f"--kv-budget {max(64, self.policy.minimum() + 1)}",
            )
        if self.budget is not None and self.chunk > self.budget - self.policy.minimum():
            raise DoesNotFitError(
                f"chunks of {self.chunk} tokens leave too little of a KV budget of {self.budget} tokens a layer",
                f"--chunk {self.budget - self.policy.minimum()} or less, or a larger --kv-budget",
            )
        least = self.family.together(self.family.model.config)
        if self.chunk < least:
            raise DoesNotFitError(
                f"chunks of {self.chunk} tokens would cut pictures apart: their {least} tokens see each other both ways",
                f"--chunk {least} or more, and a --kv-budget of {least + self.policy.minimum()} or more",
            )
        self.cache = self.family.new_cache(self.policy, self.budget, self.chunk)
        tokens = {"image": self.family.image_token, "video": self.family.video_token}
        self._tokens = tokens
        self._format: ChatFormat | None = None
        self._decoder: Decoder | None = None

    @property
    def format(self) -> ChatFormat:
        """The chat template; raises MissingError for a model that has none."""
        self._format = self._format or ChatFormat(self.family.tokenizer, self._tokens, self.family.around)
        return self._format

    def clear(self) -> None:
        """Forget everything; the cache's memory stays."""
        self.cache = self.family.new_cache(self.policy, self.budget, self.chunk)
        self.meter, self.position, self.first, self.media, self.clip, self.last = Meter(), 0, True, [], None, None

    def stop(self) -> None:
        """End what is running at the next token or frame; the session stays whole."""
        self.stopped = True

    # ---- feeding -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def feed(self, chunk: Chunk) -> Tensor:
        """Take tokens in, chunk by chunk with eviction between; logits (B, V) after the last one."""
        if not len(chunk):
            raise UsageError("nothing to read: the input is empty")
        for _ in self.passes(chunk):
            pass
        assert self.last is not None
        return self.family.logits(self.last)[:, 0]

    @torch.inference_mode()
    def passes(self, chunk: Chunk) -> Iterator[Tensor]:
        """Take tokens in, and give the hidden states (B, q, E) of each forward pass; to be exhausted."""
        for part in chunk.split(self.chunk):
            started = time.perf_counter()
            hidden = forward(self.family.text_model, self.cache, part)
            self.last = hidden[:, -1:].clone()
            self.meter.prefill_tokens += len(part)
            self.meter.prefill_s += time.perf_counter() - started
            self.on_step(self)
            yield hidden
        self.position = chunk.next_position

    @torch.inference_mode()
    def watch(self, video: Iterable[Frame]) -> int:
        """Show a video's frames as they come; returns how many. The next `ask` closes the turn."""
        self.begin(getattr(video, "interval", None))
        frames = iter(video)
        shown = 0
        while not self.stopped and (batch := list(itertools.islice(frames, FRAMES_AT_ONCE))):
            self.see(batch)
            shown += len(batch)
        self._close()
        return shown

    def begin(self, interval: float | None = None) -> Clip:
        """Open a video that `see` goes on with, its frames `interval` seconds apart where the source keeps to one."""
        self._open("video")
        self.clip = self.family.video(interval)
        return self.clip

    @torch.inference_mode()
    def see(self, frames: Sequence[Frame], interval: float | None = None) -> None:
        """Show the next frames (at most FRAMES_AT_ONCE) of a video; the first ones `begin` it. The next `ask` ends it."""
        clip = self.clip or self.begin(interval)
        started = time.perf_counter()
        chunk = clip.frames(frames, self.position)
        if chunk is not None:
            self.feed(chunk)
        self.meter.frames += len(frames)
        self.meter.video_s = frames[-1].time
        self.meter.frame_s += time.perf_counter() - started
        self.on_step(self)

    @torch.inference_mode()
    def show(self, image: Frame) -> None:
        """Show a still image. The next `ask` closes the turn."""
        self._open("image")
        self.feed(self.family.image(image, self.position))

    @torch.inference_mode()
    def ask(self, question: str, sampling: Sampling) -> Iterator[str]:
        """Answer a question about everything seen so far, piece by piece."""
        self._close()
        self.stopped = False
        before, after = self.format.turn(self.media, self.first, self.system)[len(self.media) :]
        logits = self.feed(self._text(before + question + after))
        self.first, self.media = False, []
        self.policy.after_prefill(self.cache)
        yield from self._generate(logits, sampling)

    def _open(self, kind: str) -> None:
        if self._tokens[kind] is None:
            raise UsageError(f"this model takes no {kind} input", "choose a multimodal model, such as --model demo")
        self._close()
        self.stopped = False
        piece = self.format.turn([*self.media, kind], self.first, self.system)[len(self.media)]
        if piece:
            self.feed(self._text(piece))
        self.media.append(kind)

    def _close(self) -> None:
        """End the running video."""
        clip, self.clip = self.clip, None
        end = clip.end(self.position) if clip else None
        if end is not None:
            self.feed(end)

    def _text(self, text: str) -> Chunk:
        return self.family.text(self.family.tokenize(text), self.position)

    # ---- answering ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Take in one token of an answer; logits (B, V) of the next."""
        if self._decoder is None or self._decoder.cache is not self.cache:
            self._decoder = Decoder(self.family.text_model, self.cache)
        self.last = self._decoder.step(self.family.text([token], self.position))
        self.position += 1
        return self.family.logits(self.last)[:, -1]

    def _generate(self, logits: Tensor, sampling: Sampling) -> Iterator[str]:
        generator = torch.Generator(logits.device).manual_seed(sampling.seed)
        words = Detokenizer(self.family.tokenizer)
        for _ in range(sampling.max_tokens):
            started = time.perf_counter()
            token = choose(logits, sampling, generator)
            if token in self.family.end_tokens or self.stopped:
                break
            logits = self.step(token)
            self.meter.decode_tokens += 1
            self.meter.decode_s += time.perf_counter() - started
            self.on_step(self)
            yield words.add(token)
        yield words.rest()

    # ---- what it knows of itself -------------------------------------------------------------------------------

    def kv(self) -> dict[str, Any]:
        """The `KV` object of the JSON output, measured."""
        lengths = [layer.length for layer in self.cache.governed]
        mean = sum(lengths) / len(lengths)
        spec = self.family.spec
        bound = None
        if self.budget is not None:
            bound = self.budget * spec.token_bytes(self.policy) + spec.fixed_bytes(self.policy, self.chunk)
        return {
            "seen_tokens": self.cache.seen,
            "tokens": round(mean, 1),
            "tokens_per_layer": lengths,
            "budget_tokens": self.budget,
            "budget_bytes": bound,
            "bytes": self.cache.nbytes,
            "evicted_tokens": round(self.cache.seen - mean),
            "positions": self.policy.positions,
            "streamed": any(layer.streamed for layer in self.cache.layers),
        }


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token of logits (1, V)."""
    if sampling.temperature <= 0:
        return int(logits.argmax(-1))
    chances = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ranked, order = chances.sort(dim=-1, descending=True)
        # A token stays if the ones before it have not yet filled top_p; the likeliest always stays.
        ranked[ranked.cumsum(-1) - ranked >= sampling.top_p] = 0
        chances = torch.zeros_like(chances).scatter(-1, order, ranked)
    return int(torch.multinomial(chances, 1, generator=generator))


class Detokenizer:
    """Turns tokens into text as they come, holding back half characters; remembers a handful of tokens only."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.told = 0
        """How many of `ids` are already part of the text given out."""

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        """What became readable with this token."""
        self.ids.append(token)
        known, text = self._text(self.ids[: self.told]), self._text(self.ids)
        if text.endswith("\ufffd") and len(self.ids) - self.told < 8:
            return ""
        # The last tokens stay as context: some tokenizers write a space only between two of them.
        self.ids, self.told = self.ids[self.told :], len(self.ids) - self.told
        return text[len(known) :]

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._text(self.ids)[len(self._text(self.ids[: self.told])) :]
