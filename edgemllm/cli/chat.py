"""`edgemllm chat`: questions about video, images and text."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemllm.cli import options
from edgemllm.errors import UsageError
from edgemllm.units import parse_time

if TYPE_CHECKING:
    from edgemllm.media.detail import Detail
    from edgemllm.media.video import Video

TURN_TOKENS = 16
"""What a chat template adds to a question, about: only for planning."""


def chat(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="One or more, in quotes.", show_default=False)
    ] = None,
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

    Without a question: a conversation on a terminal (/help), otherwise one question or /command a line from standard input.
    """
    if any(not question.strip() for question in questions or []):
        raise UsageError("a question is empty", 'edgemllm chat --video lecture.mp4 "What number was with the red square?"')
    from edgemllm.screen import Display

    display = Display("none" if quiet else progress)
    interactive = not questions and sys.stdin.isatty()
    asked: Iterator[str] = iter(questions or ())
    if not questions and not interactive and not dry_run:
        asked = _lines(sys.stdin)

    from edgemllm.launch import Request, prepare
    from edgemllm.media.detail import Detail
    from edgemllm.media.video import Video
    from edgemllm.models.chat import Sampling

    times = {"start": parse_time(start) if start else 0.0, "end": parse_time(end) if end else None}
    sources = [Video.open(source, fps=fps, max_frames=max_frames, **times) for source in video]  # type: ignore[arg-type]
    detail = Detail(max_pixels, tokens_per_frame)
    asked_for = (model, profile, policy, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code, system)
    launch = prepare(Request(*asked_for, detail), lambda config: _input_tokens(config, sources, image, questions or [], detail))
    if dry_run:
        from edgemllm.cli.plan import dry_run as plan_only

        plan_only(launch, json or jsonl)
    from edgemllm.commands.chat.repl import converse
    from edgemllm.commands.chat.run import Chat
    from edgemllm.commands.events import Events

    run = Chat(launch, display, Sampling(max_tokens, temperature, top_p, seed), Events("chat", json, jsonl))
    if interactive:
        run.go(sources, image, functools.partial(converse, run))
        return
    first = next(asked, None)
    if first is None:
        display.say("no question on standard input: nothing was asked")
        run.go(sources, image, None)
    else:
        run.go(sources, image, functools.partial(run.answer_all, itertools.chain([first], asked)))


def _lines(stream: Any) -> Iterator[str]:
    for line in stream:
        if line.strip():
            yield line.rstrip()


def _input_tokens(config: Any, videos: list[Video], images: list[str], questions: list[str], detail: Detail) -> int | None:
    """About how many tokens the input has, or None where a video's length is not known."""
    from edgemllm.models.families import family_of

    sizes = family_of(config.model_type).sizes(config, detail)
    total = sum(len(question) // 3 + TURN_TOKENS for question in questions) + sizes.image_tokens * len(images)
    for video in videos:
        if video.expected is None:
            return None
        total += video.expected * sizes.frame_tokens + TURN_TOKENS
    return total
