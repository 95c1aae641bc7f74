"""A run of `edgemllm chat`: what was asked and answered, and where it is written."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Iterator
from typing import Any

import typer

from edgemllm.commands.interrupts import Interrupts
from edgemllm.device import memory
from edgemllm.errors import EdgeError
from edgemllm.launch import Launch, out_of_memory
from edgemllm.media.feed import Feed
from edgemllm.media.images import read_image
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.screen import Display, remembered
from edgemllm.session import FRAMES_AT_ONCE, Session

SCHEMA = "edgemllm/1"


class Chat:
    """Watches, answers and reports."""

    def __init__(self, launch: Launch, display: Display, sampling: Sampling, json: bool, jsonl: bool) -> None:
        self.launch, self.display, self.sampling = launch, display, sampling
        self.json, self.jsonl = json, jsonl
        self.turns: list[dict[str, Any]] = []
        self.video: Video | None = None
        self.session: Session
        self.began = time.monotonic()

    def go(self, videos: list[Video], images: list[str], asked: Iterator[str], interactive: bool) -> None:
        """Watch, answer, and close the output whatever happens."""
        display = self.display
        if not interactive:
            first = next(asked, None)
            if first is None:
                display.say("no question on standard input: nothing was asked")
        with Interrupts() as interrupts:
            self.event("start", **self.launch.describe())
            self.event("plan", **{k: v for k, v in self.launch.plan.as_json().items() if k not in ("schema", "command")})
            self.session = self.launch.open(display.step)
            display.device = self.launch.device
            interrupts.session = self.session
            try:
                if interactive or first is not None:
                    self.look(videos, images)
                if interactive:
                    from edgemllm.commands.chat.repl import converse

                    converse(self, interrupts)
                elif first is not None and not interrupts.asked():
                    self.answer(first)
                    for question in asked:
                        if interrupts.asked():
                            break
                        self.answer(question)
                self.close(interrupts.code)
            except EdgeError as error:
                self.close(error.exit_code)
                raise
        if interrupts.code:
            raise typer.Exit(interrupts.code)

    def look(self, videos: list[Video], images: list[str]) -> None:
        """Show the media of the command line."""
        for path in images:
            with out_of_memory():
                self.session.show(read_image(path))
        for video in videos:
            self.watch(video)

    def watch(self, video: Video) -> None:
        """Show one video, decoded ahead of the model by a thread, and say how much of it was seen."""
        self.video = video
        self.display.expected = video.expected
        with Feed(video, FRAMES_AT_ONCE, full_batches=True) as feed, out_of_memory():
            video.frames_seen = self.session.watch(feed)
        self.display.expected = None
        self.display.say(f"{video.path}: {video.describe()}")
        if video.shortfall:
            self.display.say(f"warning: {video.shortfall}")
        self.event("video", **self.video_json())

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
                if not (self.json or self.jsonl):
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        self.display.resume()
        self.display.clear()
        if not (self.json or self.jsonl):
            print(flush=True)
        count, spent = meter.decode_tokens - tokens, meter.decode_s - seconds
        turn = {
            "question": question,
            "answer": "".join(pieces).strip(),
            "tokens": count,
            "ttft_ms": round(1000 * (first or 0), 1),
            "decode_tps": round(count / spent, 2) if spent else 0.0,
        }
        self.turns.append(turn)
        self.event("answer", **turn, kv=self.session.kv())
        self.display.say(f"  [{remembered(self.session)}]")

    # ---- output ------------------------------------------------------------------------------------------------

    def event(self, name: str, **fields: Any) -> None:
        """One line of `--jsonl`."""
        if self.jsonl:
            seconds = round(time.monotonic() - self.began, 3)
            print(json_module.dumps({"schema": SCHEMA, "event": name, "t": seconds, **fields}), flush=True)

    def close(self, code: int) -> None:
        """The one object of `--json`, or the last event of `--jsonl`."""
        self.display.clear()
        if self.json:
            print(json_module.dumps(self.result()), flush=True)
        if self.jsonl:
            self.event(
                "stats",
                kv=self.session.kv(),
                memory=memory.report(self.launch.device),
                speed=self.session.meter.rates(),
            )
            print(json_module.dumps({"schema": SCHEMA, "event": "end", "exit_code": code}), flush=True)

    def result(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "schema": SCHEMA,
            "command": "chat",
            **self.launch.describe(),
            "turns": self.turns,
            "video": self.video_json() if self.video else None,
            "kv": self.session.kv(),
            "memory": memory.report(self.launch.device),
            "speed": self.session.meter.rates(),
        }

    def video_json(self) -> dict[str, Any]:
        """The `video` object, of the latest video."""
        assert self.video is not None
        return {
            "path": self.video.path,
            "frames_total": self.video.frames_total,
            "frames_seen": self.video.frames_seen,
            "frames_dropped": 0,
            "seconds": self.video.seconds,
        }
