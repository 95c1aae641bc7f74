"""What each policy still knows of a long stream: needles at known distances, asked for at its end or on the way."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemllm.cache.attention import forward
from edgemllm.cache.chunk import Chunk
from edgemllm.commands.recall.forms import begins_with
from edgemllm.commands.recall.needles import Haystack, Needle
from edgemllm.media import slides
from edgemllm.media.frame import Frame
from edgemllm.meter import Meter
from edgemllm.models.chat import Sampling
from edgemllm.models.families.base import Clip, ModelFamily
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.session import Session

SHORT = Sampling(max_tokens=6)
SENTENCE = Sampling(max_tokens=12)
CODE = Sampling(max_tokens=3)
ROUNDS = 4
"""In the protocol `rounds`, questions come after every such part of the stream."""
PER_ROUND = 3


@dataclass
class Answers:
    """One stream under one policy: for each question its needle's distance in tokens (None: never shown), and how it went."""

    distances: list[int | None] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    recent: list[bool] = field(default_factory=list)
    held: float = 0.0
    """Share of the needles' tokens in the cache at the end, mean over layers and heads."""
    peak: int = 0
    """The most slots that a layer ever used."""


class Stream:
    """A haystack as tokens: made once, shown to every policy."""

    def __init__(self, family: ModelFamily, haystack: Haystack) -> None:
        self.family, self.haystack = family, haystack
        self.frames = isinstance(haystack.items[0], Frame)
        self.chat = self.frames or (bool(haystack.needles[0].beginning) and has_chat(family))
        """Whether questions are asked in a chat; otherwise the model completes them as text."""
        self.recorded: dict[int, Chunk] = {}
        self.tokens = [] if self.frames else [family.tokenize(item) for item in haystack.items]

    def begin(self, session: Session, record: bool) -> None:
        """Open a video or document where none is open; what the tower makes of frames is kept where `record` says so:
        where it will recur.
        """
        if self.frames and session.clip is None:
            clip = session.begin(1.0)
            session.clip = Recorder(clip, self.recorded) if record else clip
        elif self.chat and not self.frames and session.document is None:
            session.read_on("", begin=True)

    def show(self, session: Session, first: int, last: int) -> None:
        """Show items first to last (excluded)."""
        if not self.frames:
            tokens = list(itertools.chain.from_iterable(self.tokens[first:last]))
            for start in range(0, len(tokens), session.chunk):
                if not session.stopped:
                    session.feed(self.family.text(tokens[start : start + session.chunk], session.position))
            return
        items = self.haystack.items[first:last]
        for start in range(0, len(items), FRAMES_AT_ONCE):
            session.see(items[start : start + FRAMES_AT_ONCE])

    def is_fact(self, number: int) -> bool:
        """Return whether item `number` belongs to a needle."""
        return any(needle.first <= number <= needle.last for needle in self.haystack.needles)


class Recorder(Clip):
    """A clip whose chunks are computed once: every policy gets the same frames at the same positions."""

    def __init__(self, clip: Clip, recorded: dict[int, Chunk]) -> None:
        super().__init__(clip.family)
        self.clip, self.recorded = clip, recorded

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk | None:
        key = frames[0].index
        if key not in self.recorded:
            chunk = self.clip.frames(frames, offset)
            if chunk is None:
                return None
            self.recorded[key] = chunk
        return self.recorded[key]

    def end(self, offset: int) -> Chunk | None:
        return self.clip.end(offset)


class Marks:
    """Which tokens carry facts: marked for the oracle as they come in, and counted at the end."""

    def __init__(self, stream: Stream) -> None:
        needles = stream.haystack.needles
        self.seconds = torch.tensor([float(item) for needle in needles for item in range(needle.first, needle.last + 1)])
        self.spans: list[tuple[int, int]] = []
        """Stream positions (first, end) of stated sentences."""

    def of(self, positions: Tensor, time: Tensor) -> Tensor:
        """Return bool, of the shape of `time`: the tokens that carry facts, by their stream position and second."""
        found = torch.isin(time, self.seconds.to(time.device))
        for first, end in self.spans:
            found |= (positions >= first) & (positions < end)
        return found

    def mark(self, session: Session) -> None:
        """Fill the slots `fact` of a policy that has them."""
        for layer in session.cache.managed:
            if "fact" in layer.policy.buffers:
                live = slice(layer.length)
                layer.buffer("fact").copy_(self.of(layer.positions[0, ..., live], layer.time[..., live]))

    def held(self, session: Session, stated: int) -> float:
        """Return the share of the `stated` fact tokens that are in the cache."""
        layers = session.cache.managed
        count = sum(float(self.of(layer.positions[0], layer.time).sum()) / layer.kv_heads for layer in layers)
        return count / (stated * len(layers)) if stated else 0.0


def at_the_end(session: Session, stream: Stream) -> Answers:
    """Ask about every needle, and what was never shown, each time of the same cache."""
    walk = _Walk(session, stream, record=True)
    walk.on(len(stream.haystack.items))
    for needle in stream.haystack.needles:
        walk.ask(branch(session), needle)
    for question in stream.haystack.unseen:
        walk.ask(branch(session), question)
    return walk.done()


def in_rounds(session: Session, stream: Stream) -> Answers:
    """Ask, after every part of the stream, about what was shown so far; questions and answers stay in the cache."""
    walk = _Walk(session, stream, record=False)
    length, rng = len(stream.haystack.items), np.random.default_rng(stream.haystack.seed)
    for number in range(1, ROUNDS + 1):
        end = length * number // ROUNDS
        walk.on(end)
        stated = [needle for needle in stream.haystack.needles if needle.last < end]
        for chosen in rng.permutation(len(stated))[:PER_ROUND]:
            walk.ask(session, stated[int(chosen)])
    for question in stream.haystack.unseen:
        walk.ask(session, question)
    return walk.done()


PROTOCOLS: dict[str, Callable[[Session, Stream], Answers]] = {"end": at_the_end, "rounds": in_rounds}


class _Walk:
    """One pass over a stream, with questions."""

    def __init__(self, session: Session, stream: Stream, record: bool) -> None:
        self.session, self.stream, self.record = session, stream, record
        self.answers, self.marks = Answers(), Marks(stream)
        self.shown = self.stated = 0
        self.ends: dict[int, int] = {}
        """Tokens seen when an item was in."""
        self.over = False
        session.on_step = self._step

    def _step(self, session: Session) -> None:
        self.marks.mark(session)
        self.answers.peak = max(self.answers.peak, *(layer.length for layer in session.cache.managed))

    def _stopped(self) -> bool:
        """Return whether a signal came: the rest is not shown, and nothing is asked. A question makes a session forget it."""
        self.over = self.over or self.session.stopped
        return self.over

    def on(self, end: int) -> None:
        """Show the stream up to item `end`."""
        while self.shown < end and not self._stopped():
            self.stream.begin(self.session, self.record)
            if self.stream.frames:
                self._watch(min(self.shown + FRAMES_AT_ONCE, end))
            else:
                self._read(end)

    def _watch(self, last: int) -> None:
        """Show frames; each takes as many tokens as the others of its batch."""
        before, count = self.session.cache.seen, last - self.shown
        self.stream.show(self.session, self.shown, last)
        tokens = self.session.cache.seen - before
        for item in range(self.shown, last):
            self.ends[item] = before + tokens * (item + 1 - self.shown) // count
            self.stated += self.stream.is_fact(item) * tokens // count
        self.shown = last

    def _read(self, last: int) -> None:
        """Show sentences, as many at once as a chunk takes."""
        seen, position, done = self.session.cache.seen, self.session.position, 0
        for item in range(self.shown, last):
            size = len(self.stream.tokens[item])
            if self.stream.is_fact(item):
                self.marks.spans.append((position + done, position + done + size))
                self.stated += size
            done += size
            self.ends[item] = seen + done
        self.stream.show(self.session, self.shown, last)
        self.shown = last

    def ask(self, session: Session, asked: Needle | str) -> None:
        """Ask one question, about a needle or about what was never shown."""
        if self._stopped():
            return
        needle = asked if isinstance(asked, Needle) else None
        question = asked.question if isinstance(asked, Needle) else asked
        distance = None if needle is None else session.cache.seen - self.ends[needle.last]
        words = self._answer(session, question, needle.beginning if needle else "")
        refused = slides.NOT_SEEN in words
        self.answers.distances.append(distance)
        self.answers.refused.append(refused)
        self.answers.right.append(refused if needle is None else is_right(needle, words))
        self.answers.recent.append(needle is not None and self.shown - needle.last <= self.stream.haystack.recent)

    def _answer(self, session: Session, question: str, beginning: str) -> str:
        if self.stream.chat:
            return "".join(session.ask(question, SENTENCE if beginning else SHORT, beginning))
        if beginning:
            return complete(session, f"\n\n{question} {beginning}", SENTENCE)
        return complete(session, question, CODE)

    def done(self) -> Answers:
        """Return the answers, with the share of the facts that the cache holds."""
        self.answers.held = self.marks.held(self.session, self.stated)
        return self.answers


def has_chat(family: ModelFamily) -> bool:
    """Return whether a model can be asked in a chat."""
    return bool(getattr(family.tokenizer, "chat_template", None))


def is_right(needle: Needle, words: str) -> bool:
    """Return whether the answer `words` gives the fact: its first number, or with a beginning its first words."""
    if needle.beginning:
        return begins_with(words, needle.answer)
    found = re.search(r"\d+", words)
    return found is not None and found.group() == needle.answer


def branch(session: Session) -> Session:
    """Return a session that continues from here with a cache of its own; the weights are shared."""
    kept: dict[int, Any] = {id(layer.policy): layer.policy for layer in session.cache.with_slots}
    kept |= {id(part): part for part in vars(session.cache.rope).values() if isinstance(part, torch.nn.Module)}
    other = copy.copy(session)
    other.cache = copy.deepcopy(session.cache, kept)
    other.meter, other.media = Meter(), list(session.media)
    other.on_step = lambda _: None
    return other


@torch.inference_mode()
def complete(session: Session, beginning: str, sampling: Sampling) -> str:
    """Return the most likely tokens after `beginning`: for models and streams without a chat."""
    family = session.family
    logits = session.feed(family.text(family.tokenize(beginning), session.position))
    tokens: list[int] = []
    for _ in range(sampling.max_tokens):
        tokens.append(int(logits.argmax(-1)))
        hidden = forward(family.text_model, session.cache, family.text(tokens[-1:], session.position))
        session.position += 1
        logits = family.logits(hidden)[:, -1]
    words: str = family.tokenizer.decode(tokens)
    return words
