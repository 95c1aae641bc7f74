"""A session that keeps what it sees and reads in an archive, and looks at the right parts again before it answers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgemllm.archive import choice
from edgemllm.archive.archive import Archive, Place
from edgemllm.archive.calibration import finders_of
from edgemllm.archive.held import Held
from edgemllm.archive.index import Array, packed
from edgemllm.archive.look import Look, named, parts
from edgemllm.archive.notes import Notes
from edgemllm.archive.passages import Passages, said
from edgemllm.archive.pictures import decoded, encoded
from edgemllm.cache.chunk import Chunk
from edgemllm.errors import EdgeError
from edgemllm.media.frame import Frame
from edgemllm.models.chat import Sampling
from edgemllm.models.tokens import Token
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.session import GREEDY, Session
from edgemllm.units import clock

UNBOUNDED_ROOM = 512
"""Tokens that a session without a budget looks at again."""

TIMED_FRAME = 32
"""Tokens of a frame from which its time is written before it: with fewer the time would take more than the frame."""

ALWAYS = 1 << 62


@dataclass
class ArchivedSession(Session):
    """Raises UsageError for an archive of another model. `share`: of the budget, for what is looked at again."""

    archive: Archive = field(kw_only=True)
    share: float = field(default=0.25, kw_only=True)
    source: str = field(default="", kw_only=True)
    """What is watched or read now."""
    looked: Look = field(default=Look(), kw_only=True)
    """For the newest question."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._finders = finders_of(self.family, self.archive)
        self._earlier = any(self.archive.counts().values())
        self._notes: Notes | None = None
        self._passages: Passages | None = None
        self._asked, self._video = "", 0
        self._each = 0  # the most tokens that a frame of this session took

    # ---- what comes in -----------------------------------------------------------------------------------------

    def passes(self, chunk: Chunk) -> Iterator[Tensor]:
        first = 0
        for hidden in super().passes(chunk):
            if self._notes is not None:
                self._notes.add(self.cache, chunk, first, hidden.shape[1])
            first += hidden.shape[1]
            yield hidden

    def see(self, frames: Sequence[Frame], interval: float | None = None) -> None:
        self._notes = notes = Notes(self._finders.pictures.heads if self._finders.pictures else ())
        seen = self.cache.seen
        super().see(frames, interval)
        self._each = max(self._each, -(-(self.cache.seen - seen) // len(frames)))
        self._notes, self._video = None, self.archive.medium(self.source)
        self.archive.add_frames(self._video, [(each.time, encoded(each.pixels), notes.of_frame(each.time)) for each in frames])

    def see_or_hear(self, part: list[Frame] | str, interval: float | None = None) -> None:
        if not isinstance(part, str):
            super().see_or_hear(part, interval)
            return
        self._notes = notes = Notes(self._finders.words.heads)
        super().see_or_hear(part)
        self._notes = None
        medium = self.archive.medium(f"{self.source} (subtitles)")
        self.archive.add_passages(medium, [said(self.meter.video_s, part, packed(np.concatenate(notes.keys)))])

    def read_on(self, piece: str, begin: bool = False, whole: bool = False) -> None:
        if begin or self._passages is None:  # a question ends the turn, not the text
            self._passages = Passages(self._text_number(), self._room, line=self.meter.lines + 1)
        self._sizes: list[int] = []
        self._keys: list[Array] = []
        super().read_on(piece, begin, whole)
        keys = np.concatenate(self._keys) if self._keys else None
        self.archive.add_passages(self._passages.medium, self._passages.add(piece, self._sizes, keys))

    def _text_number(self) -> int:
        """Return the number of the text that begins: of one that cannot be read twice another than it had before."""
        known, name = set(self.archive.media().values()), self.source
        if not Path(name).is_file() and name in known:
            name = next(f"{name} ({number})" for number in itertools.count(2) if f"{name} ({number})" not in known)
        return self.archive.medium(name)

    def _take(self, tokens: Sequence[Token]) -> None:
        self._notes = notes = Notes(self._finders.words.heads)
        super()._take(tokens)
        self._notes = None
        self._sizes += [size for _, size, _ in tokens]
        self._keys += notes.keys

    def in_archive(self) -> dict[str, Any]:
        """Return where this session is in its archive: what `continue_in_archive` takes."""
        text = self._passages.place if self._passages else None
        return {"text": text, "video": self._video, "frame_tokens": self._each, "earlier": self._earlier}

    def continue_in_archive(self, place: Mapping[str, Any], more: bool) -> None:
        """Continue where `in_archive` was called in an earlier run; what cannot be read twice begins anew.

        `more`: the archive holds what this session's cache never did.
        """
        text = place["text"]
        again = text is not None and Path(self.archive.media().get(text["medium"], "")).is_file()
        self._passages = Passages(**text) if text and again else None
        self._video, self._each = place.get("video", 0), place.get("frame_tokens", 0)
        self._earlier = more or place.get("earlier", True)

    def clear(self) -> None:
        super().clear()
        self._earlier, self._passages = True, None

    # ---- questions ---------------------------------------------------------------------------------------------

    def put(self, question: str, beginning: str = "") -> Iterator[Tensor]:
        self._release()
        self._asked, self.looked = question, Look()
        kept = min(layer.length for layer in self.cache.managed)
        if self._earlier or kept < self.cache.seen:  # else all there is, is still in the cache
            yield from self._look_again(question)
        yield from super().put(question, beginning)

    def answer(self, sampling: Sampling = GREEDY) -> Iterator[str]:
        pieces = []
        try:
            for piece in super().answer(sampling):
                pieces.append(piece)
                yield piece
        finally:
            self._release()
        if not self.stopped:
            self.archive.add_turn(self.meter.video_s, self._asked, "".join(pieces).strip(), self.looked.spans)

    def _look_again(self, question: str) -> Iterator[Tensor]:
        """Take in the parts of the archive that the question leads to, step by step; they are held until it is answered."""
        began, seen = time.perf_counter(), self.cache.seen
        try:
            chosen = self._chosen(question)
            pictures = {place: self.archive.picture(place) for place in chosen if not place.words}
        except EdgeError as error:  # a damaged archive is no reason not to answer
            self.archive.give_up(error)
            return
        self._close()
        held, frames = self._hold(), list(pictures)
        for part in parts(frames) if self._frame_tokens() >= TIMED_FRAME else [frames] if frames else []:
            yield from self._show({place: pictures[place] for place in part})
        yield from self._quote([place for place in chosen if place.words])
        held.end = self.position
        self.looked = Look(tuple(chosen), self.cache.seen - seen, round(1000 * (time.perf_counter() - began), 1))

    def _chosen(self, question: str) -> list[Place]:
        """Return what to look at, in the order of time; of frames the newest too, so that the last one is what is there now."""
        archive = self.archive
        best = choice.best(archive, self.family, self._finders, question)
        shown = any(not place.words for place in best)
        newest = archive.newest(self._video, 1) if self._video and shown else []
        newest = newest if 2 * sum(map(self._cost, newest)) <= self._room else []  # the past goes first
        left = self._room - sum(map(self._cost, newest))
        chosen = [place for place in choice.within(archive, best, left, self._cost) if place not in newest]
        return [*(place for place in chosen if not place.words), *newest, *(place for place in chosen if place.words)]

    @property
    def _room(self) -> int:
        """Return how many tokens are looked at again."""
        return UNBOUNDED_ROOM if self.budget is None else int(self.share * self.budget)

    def _frame_tokens(self) -> int:
        return self._each or self.family.sizes(self.family.model.config, self.family.detail).frame_tokens

    def _cost(self, place: Place) -> int:
        """Return the tokens that a place takes, with what is written around it."""
        if place.words:
            return len(self.family.tokenize(self._quoted(place)))
        each = self._frame_tokens()
        return each + (len(self.family.tokenize(_at(place))) if each >= TIMED_FRAME else 0)

    def _show(self, pictures: Mapping[Place, bytes]) -> Iterator[Tensor]:
        """Show frames as one video, with their time before it where that is little beside them."""
        if self._frame_tokens() >= TIMED_FRAME:
            super().see_or_hear(_at(next(iter(pictures))))
        found = [decoded(jpeg, place.first) for place, jpeg in pictures.items()]
        frames = [frame for frame in found if frame is not None]
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            counts = {name: getattr(self.meter, name) for name in ("frames", "frame_s", "video_s")}
            super().see(frames[start : start + FRAMES_AT_ONCE])
            vars(self.meter).update(counts)  # they are not new
            yield from self._newest()
        self._close()

    def _quote(self, places: Sequence[Place]) -> Iterator[Tensor]:
        if places:
            super().see_or_hear("".join(map(self._quoted, places)))
            yield from self._newest()

    def _newest(self) -> Iterator[Tensor]:
        """Give the hidden state of the newest token, so that a second look can be interrupted as `passes` can."""
        assert self.last is not None
        yield self.last

    def _quoted(self, place: Place) -> str:
        return f"[{named([place])}] {self.archive.text(place).strip()}\n"

    def _hold(self) -> Held:
        """Hold what comes in from now on, beside what the cache's focus finds, which all layers share."""
        held = Held(self.cache.managed[0].focus, self.position, ALWAYS)
        for layer in self.cache.managed:
            layer.focus = held
        return held

    def _release(self) -> None:
        for layer in self.cache.managed:
            if isinstance(layer.focus, Held):
                layer.focus = layer.focus.inner


def name_source(session: Session, name: str) -> None:
    """Say what is watched or read from now on, where the session keeps an archive."""
    if isinstance(session, ArchivedSession):
        session.source = name


def looked(session: Session) -> Look | None:
    """Return what was looked at again for the newest question; None where there is no archive."""
    return session.looked if isinstance(session, ArchivedSession) else None


def _at(place: Place) -> str:
    return f"[{clock(place.first)}]"
