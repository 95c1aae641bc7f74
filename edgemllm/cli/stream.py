"""`edgemllm stream`: watch a source for as long as it lasts, and answer on the way."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgemllm.cli import options
from edgemllm.cli.help import Command
from edgemllm.commands.interrupts import Interrupts
from edgemllm.errors import EdgeError, MediaError, UsageError
from edgemllm.units import clock, parse_time

if TYPE_CHECKING:
    from edgemllm.commands.stream.answers import Answers
    from edgemllm.commands.stream.run import Stream
    from edgemllm.commands.stream.schedule import Schedule
    from edgemllm.media.detail import Detail
    from edgemllm.media.source import Source
    from edgemllm.media.typed_lines import TypedLines
    from edgemllm.screen import Display

TURN_TOKENS = 16
"""What a chat template adds to a question, about: only for planning."""


class StreamCommand(Command):
    """Takes `--at TIME QUESTION` as two words, and questions from the environment one a line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell both out before the parser sees them."""
        for name in ("ask", "every", "at"):
            if not any(word.partition("=")[0] == f"--{name}" for word in args):
                lines = os.environ.get(f"EDGEMLLM_{name.upper()}", "").splitlines()
                args = [*(f"--{name}={line}" for line in lines if line.strip()), *args]
        return super().parse_args(ctx, list(_joined(iter(args))))


def _joined(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        name, equals, value = word.partition("=")
        yield name if name == "--at" else word
        if name == "--at":
            when = value if equals else next(words, "")
            yield when if " " in when.strip() else f"{when} {next(words, '')}"


def stream(
    source: options.StreamSource,
    ask: options.Ask = [],  # noqa: B006
    every: options.Every = [],  # noqa: B006
    at: options.At = [],  # noqa: B006
    fps: options.Fps = 1.0,
    max_frames: options.MaxFrames = None,
    start: options.Start = None,
    end: options.End = None,
    max_pixels: options.MaxPixels = None,
    tokens_per_frame: options.TokensPerFrame = None,
    live: options.Live = None,
    retries: options.Retries = 10,
    timeout: options.Timeout = None,
    skip_similar: options.SkipSimilar = None,
    save: options.Save = None,
    resume: options.ResumeFrom = None,
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
    srt: options.Srt = False,
    vtt: options.Vtt = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.Progress = "auto",
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Watch a source for hours in constant memory, answer questions.

    Lines typed or piped meanwhile are questions about everything seen so far; /help lists further commands.
    """
    from edgemllm.screen import Display

    display = Display("none" if quiet else progress)
    out = _answers(json, jsonl, srt, vtt)
    with Interrupts(saves=True) as interrupts, contextlib.ExitStack() as at_end:
        from edgemllm import session_file
        from edgemllm.commands.lineup import limit
        from edgemllm.commands.stream.rounds import Rounds
        from edgemllm.commands.stream.run import Stream
        from edgemllm.commands.stream.schedule import Schedule
        from edgemllm.launch import Request, prepare
        from edgemllm.media.detail import Detail
        from edgemllm.media.similarity import Similarity
        from edgemllm.media.source import Source
        from edgemllm.models.chat import Sampling

        schedule = Schedule.parse(ask, every, at)
        times = {"start": parse_time(start) if start else 0.0, "end": parse_time(end) if end else None}
        silence = parse_time(timeout) if timeout else None
        watched = Source(source, fps, **times, max_frames=max_frames, live=live, retries=retries, timeout=silence)  # type: ignore[arg-type]
        similarity = Similarity(skip_similar) if skip_similar is not None else None
        if save is not None:
            session_file.check_place(save)
        state = _earlier(resume, save, display)
        feed = watched.open(state.get("place"))
        at_end.callback(feed.close)
        schedule.start = watched.start
        _check_times(schedule, watched)
        detail = Detail(max_pixels, tokens_per_frame)
        launch = prepare(
            Request(
                model, profile, policy, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code, system, detail
            ),
            lambda config: _input_tokens(config, watched, schedule, detail),
        )
        if dry_run:
            from edgemllm.cli.plan import dry_run as plan_only

            plan_only(launch, json or jsonl)
        session = launch.open(display.step)
        if state and resume is not None:
            session_file.load(session, resume)
        display.device, display.expected = launch.device, watched.video.expected if watched.video else None
        rounds = Rounds(
            session, schedule, Sampling(max_tokens, temperature, top_p, seed), out, display, stopping=interrupts.asked
        )
        run = Stream(rounds, watched, feed, interrupts.save_wanted, _lines(source, display), similarity, save, max_frames)
        run.limit = limit(launch)
        if state:
            run.resume(state)
            display.say(f"going on from {resume} at {clock(session.meter.video_s)}")
        interrupts.session = session
        out.start(**launch.describe(), source=watched.name)
        _watch(run, out, interrupts)
    if interrupts.code:
        raise typer.Exit(interrupts.code)


def _watch(run: Stream, out: Answers, interrupts: Interrupts) -> None:
    """Run; whatever ends it, the session is saved if it is whole, and the output is closed."""
    failure: EdgeError | None = None
    try:
        run.run()
    except MediaError as error:
        failure = error
    except EdgeError as error:  # in the middle of a forward pass: the earlier file is the better one
        failure, run.save_to = error, None
    except BrokenPipeError:  # nobody reads the answers any more
        if run.save_to is not None:
            run.save()
        raise
    except Exception:
        run.display.clear()
        out.close(1, **run.summary())
        raise
    run.display.clear()
    if run.save_to is not None:
        try:
            run.save()
        except EdgeError as error:
            if failure is not None:
                run.display.tell(f"error: {error.message}")
            failure = failure or error
    out.close(failure.exit_code if failure else interrupts.code, **run.summary())
    if failure is not None:
        raise failure


def _answers(json: bool, jsonl: bool, srt: bool, vtt: bool) -> Answers:
    from edgemllm.commands.stream.answers import JsonAnswers, JsonLinesAnswers, SubtitleAnswers, TextAnswers

    chosen = [name for name, wanted in (("--json", json), ("--jsonl", jsonl), ("--srt", srt), ("--vtt", vtt)) if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} both want standard output", "one of them")
    if srt or vtt:
        return SubtitleAnswers(vtt)
    return JsonAnswers() if json else JsonLinesAnswers() if jsonl else TextAnswers()


def _earlier(resume: Path | None, save: Path | None, display: Display) -> dict[str, Any]:
    """The state of the run that is to go on; empty where there is none."""
    if resume is None:
        return {}
    if resume == save and not resume.exists():
        display.say(f"no saved session {resume} yet: from the beginning")
        return {}
    from edgemllm import session_file

    state = session_file.run_of(resume)
    if "place" not in state:
        raise UsageError(f"{resume} is a session, but of no stream", "edgemllm chat, then /load")
    return state


def _lines(source: str, display: Display) -> TypedLines | None:
    """Questions from standard input, unless it brings the images."""
    if source == "-" or sys.stdin is None:
        return None
    from edgemllm.media.typed_lines import TypedLines

    lines = TypedLines(sys.stdin)
    if lines.interactive:
        display.say("type a question at any time; /help lists the commands")
    return lines


def _check_times(schedule: Schedule, source: Source) -> None:
    """Refuse before hours of watching a time that a recording does not have. A second too much is fine."""
    video = source.video
    last = max((when for when, _ in schedule.timed), default=0.0)
    if video is None or video.seconds is None or last <= video.start + (video.span or 0.0) + source.offset + 1:
        return
    raise UsageError(
        f"--at {clock(last)} is beyond the end of {source.name}, which lasts {clock(video.seconds)}",
        f"choose a time up to {clock(video.seconds)}, or --at end",
    )


def _input_tokens(config: Any, source: Source, schedule: Schedule, detail: Detail) -> int | None:
    """About how many tokens the input has, or None where its length is not known."""
    from edgemllm.models.families import family_of

    video = source.video
    if video is None or video.expected is None or video.span is None:
        return None
    frame = family_of(config.model_type).sizes(config, detail).frame_tokens
    rounds = [(question, video.span // every) for question, every in schedule.standing]
    rounds += [(question, 1) for question in (*schedule.final, *(question for _, question in schedule.timed))]
    return round(video.expected * frame + sum(count * (len(question) // 3 + TURN_TOKENS) for question, count in rounds))
