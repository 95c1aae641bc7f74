"""A run of `edgemllm chat`: what was asked and answered, and where it is written."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

from edgemllm.archive.session import looked, name_source
from edgemllm.commands.events import Events
from edgemllm.commands.interrupts import Interrupts
from edgemllm.device import memory
from edgemllm.errors import EdgeError, out_of_memory
from edgemllm.launch import Launch
from edgemllm.limit import check_limit, limit
from edgemllm.media.feed import Feed
from edgemllm.media.images import read_image
from edgemllm.media.subtitles import Subtitles
from edgemllm.media.text import Text
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.screen import Display, remembered, spans
from edgemllm.session import Session


@dataclass
class Chat:
    """Watches, answers and reports."""

    launch: Launch
    display: Display
    sampling: Sampling
    events: Events
    interrupts: Interrupts
    clip: dict[str, Any] = field(default_factory=dict)
    """How a video that is opened on the way is sampled: keywords of `Video.open`."""
    subtitles: dict[str, Subtitles] = field(default_factory=dict)
    """What is said in the videos of the command line, by their paths."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    forgotten: int = 0
    """How many of the turns the session no longer knows: they were cleared, or another session was loaded."""
    video: Video | None = None
    text: dict[str, Any] | None = None
    """The `text` object, of the latest document."""
    limit: int | None = None
    """Tokens a layer that a cache without bound may grow to, while a text of unknown length is read."""
    make: Callable[..., Session] = Session
    """What makes a session; see `ArchiveOptions.sessions`."""
    session: Session = field(init=False)

    def go(
        self, videos: Sequence[Video], images: Sequence[str], texts: Sequence[Text], talk: Callable[[], None] | None
    ) -> None:
        """Load, look and `talk`, and close the output whatever happens; with None, nobody is there to ask."""
        self.events.event("start", **self.launch.describe())
        self.events.event("plan", **self.launch.plan.as_json())
        self.session = self.interrupts.session = self.launch.open(self.step, make=self.make)
        self.display.device = self.launch.device
        try:
            if talk is not None:
                self.look(videos, images, texts)
                talk()
            self.close(self.interrupts.code)
        except EdgeError as error:
            self.close(error.exit_code)
            raise
        if self.interrupts.code:
            raise typer.Exit(self.interrupts.code)

    def step(self, session: Session) -> None:
        """Called after every forward pass."""
        check_limit(session, self.limit)
        self.display.step(session)

    def look(self, videos: Sequence[Video], images: Sequence[str], texts: Sequence[Text]) -> None:
        """Show the media and texts of the command line, until a signal comes."""
        for path in images:
            with out_of_memory():
                self.session.show(read_image(path))
        for video in videos:
            if self.interrupts.asked():
                self.display.say(f"{video.path}: not watched")
            else:
                self.watch(video)
        for text in texts:
            if self.interrupts.asked():
                self.display.say(f"{text.name}: not read")
            else:
                self.read(text)

    def watch(self, video: Video) -> None:
        """Show one video, decoded ahead of the model by a thread, and say how much of it was seen."""
        self.video = video
        self.display.expected = video.expected
        name_source(self.session, video.path)
        feed = Feed(video, FRAMES_AT_ONCE, full_batches=True, stopping=self.interrupts.asked)
        with feed, out_of_memory():
            video.frames_seen = self.session.watch(feed, self.subtitles.pop(video.path, None))
        self.display.expected = None
        self.display.say(f"{video.path}: {video.describe()}")
        if video.shortfall:
            self.display.say(f"warning: {video.shortfall}")
        self.events.event("video", **self.video_json())

    def read(self, text: Text) -> None:
        """Read one document, and say how much of it was read."""
        meter = self.session.meter
        lines, size = meter.lines, meter.text_bytes
        name_source(self.session, text.name)
        self.display.expected_bytes = text.size and size + text.size
        self.limit = limit(self.launch) if text.size is None else None  # one of known length was planned for
        try:
            with out_of_memory():
                tokens = self.session.read(text)
        finally:
            self.display.expected_bytes = self.limit = None
        self.text = {"path": text.name, "tokens": tokens, "lines": meter.lines - lines, "bytes": meter.text_bytes - size}
        stopped = ", stopped there" if self.session.stopped else ""
        self.display.say(f"{text.name}: {meter.lines - lines:,} lines, {tokens:,} tokens read{stopped}")
        self.events.event("text", **self.text)

    def begin(self, launch: Launch) -> None:
        """Continue with an empty session under another launch, with the weights that are loaded."""
        family, quant = self.session.family, self.launch.quant
        self.launch = dataclasses.replace(launch, quant=quant)
        self.session = self.make(
            family, launch.policy, launch.budget, launch.chunk, launch.request.system, launch.focus, launch.bits
        )
        self.session.on_step = self.step
        self.forgotten = len(self.turns)

    def answer(self, question: str) -> None:
        """Ask, write the answer as it comes, then say what eviction has cost."""
        meter = self.session.meter
        tokens, seconds, began, first = meter.decode_tokens, meter.decode_s, time.monotonic(), None
        pieces: list[str] = []
        self.display.hold()
        with out_of_memory():
            for piece in self.session.ask(question, self.sampling):
                first = first or time.monotonic() - began
                pieces.append(piece)
                if self.events.text:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        self.display.resume()
        self.display.clear()
        if self.events.text:
            print(flush=True)
        count, spent = meter.decode_tokens - tokens, meter.decode_s - seconds
        turn = {
            "question": question,
            "answer": "".join(pieces).strip(),
            "tokens": count,
            "ttft_ms": round(1000 * (first or 0), 1),
            "decode_tps": round(count / spent, 2) if spent else 0.0,
        }
        look = looked(self.session)
        turn |= look.as_json() if look else {}
        self.turns.append(turn)
        self.events.event("answer", **turn, kv=self.session.kv())
        self.display.say(f"  [{remembered(self.session)}{look.note() if look else ''}]")

    # ---- output ------------------------------------------------------------------------------------------------

    def close(self, code: int) -> None:
        """Write the one object of `--json`, or the last events of `--jsonl`."""
        self.display.clear()
        figures = self.figures()
        self.events.event("stats", **figures)
        video = self.video_json() if self.video else None
        text = {"text": {**self.text, "remembered": spans(self.session)}} if self.text else {}
        self.events.close(code, {**self.launch.describe(), "turns": self.turns, "video": video, **text, **figures})

    def figures(self) -> dict[str, Any]:
        """Return cache, memory and speed."""
        device = self.launch.device
        return {"kv": self.session.kv(), "memory": memory.report(device), "speed": self.session.meter.rates()}

    def video_json(self) -> dict[str, Any]:
        """Return the `video` object, of the latest video."""
        assert self.video is not None
        return {
            "path": self.video.path,
            "frames_total": self.video.frames_total,
            "frames_seen": self.video.frames_seen,
            "frames_dropped": 0,
            "seconds": self.video.seconds,
        }
