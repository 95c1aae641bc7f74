"""`edgemllm chat`: questions about video, images and text."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemllm.cli import options
from edgemllm.cli.interrupts import Interrupts
from edgemllm.device import memory
from edgemllm.errors import EdgeError, UsageError
from edgemllm.inputs.clock import parse_time

if TYPE_CHECKING:
    from edgemllm.display.line import Display
    from edgemllm.inputs.detail import Detail
    from edgemllm.inputs.video import Video
    from edgemllm.launch import Launch
    from edgemllm.session import Sampling, Session

SCHEMA = "edgemllm/1"
TURN_TOKENS = 16
"""What a chat template adds to a question, about: only for planning."""


def chat(
    questions: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]...", show_default=False)] = None,
    video: options.Videos = [],  # noqa: B006
    image: options.Images = [],  # noqa: B006
    fps: options.Fps = 1.0,
    max_frames: options.MaxFrames = None,
    start: options.Start = None,
    end: options.End = None,
    max_pixels: options.MaxPixels = None,
    tokens_per_frame: options.TokensPerFrame = None,
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policy = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "auto",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.Progress = "auto",
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Ask about video, images and text of any length.

    Without a question: a conversation on a terminal (/help), otherwise one question a line from standard input.
    """
    if any(not question.strip() for question in questions or []):
        raise UsageError("a question is empty", 'edgemllm chat --video lecture.mp4 "What number was with the red circle?"')
    from edgemllm.display.line import Display

    display = Display("none" if quiet else progress)
    interactive = not questions and sys.stdin.isatty()
    asked: Iterator[str] = iter(questions or ())
    if not questions and not interactive and not dry_run:
        asked = _lines(sys.stdin)
    from edgemllm.cli.main import quiet_libraries

    quiet_libraries(verbose)
    from edgemllm.inputs.detail import Detail
    from edgemllm.inputs.video import Video
    from edgemllm.launch import Request, prepare
    from edgemllm.session import Sampling

    times = {"start": parse_time(start) if start else 0.0, "end": parse_time(end) if end else None}
    sources = [Video.open(source, fps=fps, max_frames=max_frames, **times) for source in video]  # type: ignore[arg-type]
    detail = Detail(max_pixels, tokens_per_frame)
    asked_for = (model, profile, policy, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code, system)
    launch = prepare(Request(*asked_for, detail), lambda config: _input_tokens(config, sources, image, questions or [], detail))
    if dry_run:
        from edgemllm.cli.plan import arithmetic

        print(json_module.dumps(launch.plan.as_json()) if json or jsonl else arithmetic(launch.plan))
        raise typer.Exit(0 if launch.plan.fits else 4)
    run = Chat(launch, display, Sampling(max_tokens, temperature, top_p, seed), json, jsonl)
    run.go(sources, image, asked, interactive)


class Chat:
    """One run of the command: what was asked and answered, and where it is written."""

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
                    from edgemllm.cli.repl import converse

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
        from edgemllm.inputs.images import read_image

        for path in images:
            with out_of_memory():
                self.session.show(read_image(path))
        for video in videos:
            self.watch(video)

    def watch(self, video: Video) -> None:
        """Show one video, decoded ahead of the model by a thread, and say how much of it was seen."""
        from edgemllm.inputs.feed import Feed
        from edgemllm.session import FRAMES_AT_ONCE

        self.video = video
        self.display.expected = video.expected
        feed = Feed(video, FRAMES_AT_ONCE, full_batches=True)
        try:
            with out_of_memory():
                video.frames_seen = self.session.watch(feed)
        finally:
            feed.close()
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
        from edgemllm.display.line import remembered

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


def out_of_memory() -> Any:
    """See launch.out_of_memory; imported late, so that `--help` stays quick."""
    from edgemllm.launch import out_of_memory as guard

    return guard()


def _lines(stream: Any) -> Iterator[str]:
    for line in stream:
        if line.strip():
            yield line.strip()


def _input_tokens(config: Any, videos: list[Video], images: list[str], questions: list[str], detail: Detail) -> int | None:
    """About how many tokens the input has, or None where a video's length is not known."""
    from edgemllm.models import family_of

    frames, stills = family_of(config.model_type).media_tokens(config, detail)
    total = sum(len(question) // 3 + TURN_TOKENS for question in questions) + stills * len(images)
    for video in videos:
        if video.expected is None:
            return None
        total += video.expected * frames + TURN_TOKENS
    return total
