"""A session: one conversation or stream, that is a model, a bounded cache, and what comes next."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from edgemllm.cache.attention import forward
from edgemllm.cache.bits import UNQUANTISED, KVBits
from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.cache.decode import Decoder
from edgemllm.cache.focus import Focus, room
from edgemllm.cache.kv_cache import KVCache
from edgemllm.cache.kv_store import split
from edgemllm.cache.policy import CachePolicy
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.media.frame import Frame
from edgemllm.media.images import read_image
from edgemllm.media.subtitles import Subtitles
from edgemllm.media.text import Text, empty
from edgemllm.meter import Meter
from edgemllm.models.channels import channels
from edgemllm.models.chat import TEXT, ChatFormat, Detokenizer, Sampling, choose
from edgemllm.models.document import Document, numbered
from edgemllm.models.families.base import Clip, ModelFamily
from edgemllm.models.finders import finders, listen
from edgemllm.models.tokens import Token, pieces, tokenize
from edgemllm.models.weights import not_finite
from edgemllm.planning import chunk_size
from edgemllm.planning.peaks import FRAMES_AT_ONCE

GREEDY = Sampling()
"""The likeliest token at every step, up to 512."""


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
    focus: Sequence[str] = ()
    """Questions that will be asked: they score the cache until then, where the policy takes a focus."""
    bits: KVBits = UNQUANTISED
    """Of the keys and values in the cache."""
    on_step: Callable[[Session], None] = lambda session: None
    """Called after every forward pass and token, for the display."""
    meter: Meter = field(default_factory=Meter)
    position: int = 0
    """The next free place in the stream; positions are ours, nothing is read from the model."""
    first: bool = True
    """Nothing was asked yet."""
    media: list[str] = field(default_factory=list)
    """What was shown last in the turn that the next question closes."""
    clip: Clip | None = None
    """The running video, which `see` continues."""
    document: Document | None = None
    """The running document, which `read_on` continues."""
    stopped: bool = False
    """Set by `stop()`; ends the running answer or video at the next token or frame."""
    last: Tensor | None = field(default=None, repr=False, compare=False)
    """(B, 1, E), the hidden state of the newest token: what predicts the next one."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < self.policy.minimum() + 1:
            raise DoesNotFitError(
                f"a KV budget of {self.budget} tokens per layer is too small: the policy needs at least "
                f"{self.policy.minimum() + 1}",
                f"--kv-budget {max(64, self.policy.minimum() + 1)}",
            )
        if self.budget is not None:
            chunk_size.check(self.chunk, self.budget, self.policy)
        least = self.family.sizes(self.family.model.config).indivisible
        if self.chunk < least:
            raise DoesNotFitError(
                f"chunks of {self.chunk} tokens would cut pictures apart: their {least} tokens see each other both ways",
                f"--chunk {least} or more, and a --kv-budget of {least + self.policy.minimum()} or more",
            )
        self.cache = self._empty()
        tokens = {"image": self.family.image_token, "video": self.family.video_token}
        self._tokens = tokens
        self._format: ChatFormat | None = None
        self._decoder: Decoder | None = None

    @property
    def format(self) -> ChatFormat:
        """Return the chat template. Raises MissingError for a model that has none."""
        self._format = self._format or ChatFormat(self.family.tokenizer, self._tokens, self.family.media_wrappers)
        return self._format

    @torch.inference_mode()
    def _empty(self) -> KVCache:
        """Return an empty cache, with the queries of the focus in its layers."""
        cache = self.family.new_cache(self.policy, self.budget, self.chunk, self.bits)
        if self.bits.coded:
            for layer, known in zip(cache.with_slots, channels(self.family), strict=True):
                layer.channels = {name: known[name] for name in self.bits.coded}
        if self.policy.takes_focus and self.focus:
            lookers = finders(self.family)
            focus = Focus([cache.managed[place] for place in lookers])
            for question in self.focus:
                alone = listen(self.family, question)
                focus.add([alone.managed[place] for place in lookers])
            for layer in cache.managed:
                layer.focus = focus
        return cache

    def clear(self) -> None:
        """Forget everything."""
        self._decoder = None  # it holds the cache, and two at once would exceed the budget
        self.cache = self._empty()
        self.meter, self.position, self.first, self.media = Meter(), 0, True, []
        self.clip, self.document, self.last = None, None, None

    def stop(self) -> None:
        """End what is running at the next token or frame; the session stays whole."""
        self.stopped = True

    # ---- feeding -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def feed(self, chunk: Chunk) -> Tensor:
        """Take tokens in, chunk by chunk with eviction between; return logits (B, V) after the last one."""
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
    def watch(self, video: Iterable[Frame], subtitles: Subtitles | None = None) -> int:
        """Show a video's frames as they come, with what `subtitles` say among them; returns how many frames.

        The next `ask` closes the turn.
        """
        interval, frames, shown = getattr(video, "interval", None), iter(video), 0
        self._forget_stop()
        if subtitles is None:
            self.begin(interval)
        with contextlib.ExitStack() as at_end:
            # A generator holds a file, a camera or a thread, and would keep it as long as somebody keeps our traceback.
            at_end.callback(getattr(frames, "close", lambda: None))
            while not self.stopped and (batch := list(itertools.islice(frames, FRAMES_AT_ONCE))):
                parts = iter([batch]) if subtitles is None else subtitles.among(batch)
                for part in itertools.takewhile(lambda _: not self.stopped, parts):
                    self.see_or_hear(part, interval)
                    shown += 0 if isinstance(part, str) else len(part)
        if subtitles is not None and not self.stopped and (rest := subtitles.rest()):
            self.see_or_hear(rest)
        self._close()
        return shown

    @torch.inference_mode()
    def see_or_hear(self, part: list[Frame] | str, interval: float | None = None) -> None:
        """Show the next frames of a video, or what is said before them: text between two videos, as the template has it."""
        if not isinstance(part, str):
            self.see(part, interval)
            return
        self._open(TEXT)
        ids = [token for token, _, _ in tokenize(self.family.tokenizer, "", part, special=False)]
        self.feed(self.family.text(ids, self.position))

    def begin(self, interval: float | None = None) -> Clip:
        """Open a video that `see` continues, its frames `interval` seconds apart where the source keeps to one."""
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
    def show(self, image: Frame | str | os.PathLike[str]) -> None:
        """Show a still image, a file or a frame. The next `ask` closes the turn. Raises MissingError and MediaError."""
        self.stopped = False
        frame = image if isinstance(image, Frame) else read_image(os.fspath(image))
        self._open("image")
        if label := self.family.label(self.meter.images):
            self.feed(self._text(label))
        self.feed(self.family.image(frame, self.position))
        self.meter.images += 1

    @torch.inference_mode()
    def read(self, text: str | os.PathLike[str] | Text) -> int:
        """Read a text of any length, as it comes: a file (a path) or the text itself. The next `ask` closes the turn.

        Returns how many of its tokens were read. Raises MissingError where it is empty, or cannot be read to its end.
        """
        source = Text([os.fspath(text)]) if isinstance(text, os.PathLike) else text
        blocks = [source] if isinstance(source, str) else source.blocks(lambda: self.stopped)
        before, piece = self.meter.text_tokens, ""
        self.stopped = False
        try:
            for _, next_piece in pieces(blocks, 8 * self.chunk):  # about two chunks: a stop is heard soon
                self.read_on(next_piece, begin=not piece, whole=True)
                piece = next_piece
                if self.stopped:
                    break
        finally:
            self.settle()
        if not (piece or self.stopped):
            raise empty("it" if isinstance(source, str) else source.name)
        self.meter.lines += bool(piece) and not piece.endswith("\n")
        self._close()
        return self.meter.text_tokens - before

    @torch.inference_mode()
    def read_on(self, piece: str, begin: bool = False, whole: bool = False) -> None:
        """Read the next piece of a document, cut at a line or between two words; the first one begins it. `ask` ends it.

        All of it is read, however soon a stop comes. `whole`: in whole chunks, the rest together with the next piece.
        """
        if begin or self.document is None:
            self._open(TEXT)
            self.document = Document(self.family.tokenizer)
        for tokens in self.document.parts(piece, self.chunk, whole):
            self._take(tokens)

    def _take(self, tokens: Sequence[Token]) -> None:
        """Feed tokens of a document, and count them."""
        self.feed(numbered(self.family, tokens, self.position, self.meter.lines + 1))
        self.meter.text_tokens += len(tokens)
        self.meter.text_bytes += sum(size for _, size, _ in tokens)
        self.meter.lines += sum(ends for _, _, ends in tokens)

    @torch.inference_mode()
    def ask(self, question: str, sampling: Sampling = GREEDY, beginning: str = "") -> Iterator[str]:
        """Answer a question about everything seen so far, piece by piece; nothing is asked before the first is taken.

        `beginning`: words that the answer begins with, which are not given out.
        """
        for _ in self.put(question, beginning):
            pass
        yield from self.answer(sampling)

    @torch.inference_mode()
    def put(self, question: str, beginning: str = "") -> Iterator[Tensor]:
        """Take in a question, and what is known of its answer, without answering; gives what `passes` does, to be exhausted.

        `answer` continues from there; with the whole answer as `beginning`, the next question does.
        """
        self._close()
        self.stopped = False
        before, after = self.format.turn(self.media, self.first, self.system)[len(self.media) :]
        self.cache.begin_prompt()
        yield from self.passes(self._text(before + question + after + beginning))
        self.first, self.media = False, []
        self.policy.after_prefill(self.cache.managed)

    @torch.inference_mode()
    def answer(self, sampling: Sampling = GREEDY) -> Iterator[str]:
        """Answer the question that was `put`, piece by piece."""
        assert self.last is not None
        yield from self._generate(self.family.logits(self.last)[:, 0], sampling)

    def _forget_stop(self) -> None:
        self.stopped = False

    def _open(self, kind: str) -> None:
        if kind != TEXT and self._tokens[kind] is None:
            raise UsageError(f"this model takes no {kind} input", "choose a multimodal model, such as --model demo")
        self._close()
        piece = self.format.turn([*self.media, kind], self.first, self.system)[len(self.media)]
        if piece:
            self.feed(self._text(piece))
        self.media = [kind]  # what is written before the next one does not depend on those before the last

    def settle(self) -> None:
        """Take in what is left of a document whose pieces came in whole chunks, before anything else happens."""
        if self.document and self.document.waiting:
            self.read_on("")

    def _close(self) -> None:
        """End the running video or document."""
        self.settle()
        self.document = None
        clip, self.clip = self.clip, None
        end = clip.end(self.position) if clip else None
        if end is not None:
            self.feed(end)

    def _text(self, text: str) -> Chunk:
        whole = text.encode("utf-8", "replace").decode()  # an argument that is not UTF-8 brings halves of characters
        return self.family.text(self.family.tokenize(whole), self.position)

    # ---- answering ---------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> Decoder:
        """Return what runs single tokens through this session's cache."""
        if self._decoder is None or self._decoder.cache is not self.cache:
            self._decoder = Decoder(self.family.text_model, self.cache)
        return self._decoder

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        """Take in one token of an answer; return logits (B, V) of the next."""
        self.last = self.decoder.step(self.family.text([token], self.position))
        self.position += 1
        return self.family.logits(self.last)[:, -1]

    def _generate(self, logits: Tensor, sampling: Sampling) -> Iterator[str]:
        generator = torch.Generator(logits.device).manual_seed(sampling.seed)
        words = Detokenizer(self.family.tokenizer)
        for _ in range(sampling.max_tokens):
            started = time.perf_counter()
            if not bool(logits.max().isfinite()):
                raise not_finite(self.family.name, self.family.model, self.family.dtype)
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

    def remembered(self, kind: Literal["video", "text"]) -> list[float]:
        """Return the seconds of video, or the lines of text, of which the cache still holds something, in order."""
        found: list[float] = self.cache.remembered(Modality.VISION if kind == "video" else Modality.TEXT).tolist()
        return found

    def kv(self) -> dict[str, Any]:
        """Return the `KV` object of the JSON output, measured."""
        lengths = [layer.length for layer in self.cache.managed]
        mean = sum(lengths) / len(lengths)
        spec = replace(self.family.spec, focus=room(self.policy, len(self.focus)), bits=self.bits)
        bound = None
        if self.budget is not None:
            bound = self.budget * spec.token_bytes(self.policy) + spec.fixed_bytes(self.policy, self.chunk, self.budget)
        return {
            "seen_tokens": self.cache.seen,
            "tokens": round(mean, 1),
            "tokens_per_layer": lengths,
            "budget_tokens": self.budget,
            "budget_bytes": bound,
            "bytes": self.cache.nbytes,
            "evicted_tokens": round(self.cache.seen - mean),
            "positions": self.policy.positions,
            "bits": self.bits.name,
            "parts": split([layer.store for layer in self.cache.with_slots if layer.is_initialized], self.cache.nbytes),
            "streamed": any(layer.counts.streamed for layer in self.cache.managed),
            "state_bytes": self.cache.state_bytes,
            "managed_layers": len(self.cache.managed),
        }
