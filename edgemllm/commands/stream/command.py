"""What `edgemllm stream` does with its options: open the source, plan, load, watch, and close everything in order."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from edgemllm import session_file
from edgemllm.archive.session import name_source
from edgemllm.commands import options
from edgemllm.commands.archive.options import ArchiveOptions
from edgemllm.commands.archive.sessions import sessions
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.plan.report import stop_after
from edgemllm.commands.stream.answers import Answers, answers_as
from edgemllm.commands.stream.frames import FrameStream
from edgemllm.commands.stream.options import FeedOptions, QuestionOptions, SessionOptions, SubtitleOptions
from edgemllm.commands.stream.reading import TextStream
from edgemllm.commands.stream.rounds import Rounds
from edgemllm.commands.stream.run import Stream
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import EdgeError, MediaError, TextError, UsageError
from edgemllm.launch import prepare
from edgemllm.limit import limit
from edgemllm.media.detail import Detail
from edgemllm.media.feed import Feed
from edgemllm.media.growing_text import GrowingText
from edgemllm.media.similarity import Similarity
from edgemllm.media.source import Source
from edgemllm.media.subtitles import Subtitles
from edgemllm.media.typed_lines import TypedLines
from edgemllm.models.chat import Sampling
from edgemllm.models.families import family_of
from edgemllm.planning.estimate import question_tokens
from edgemllm.screen import Display, changes
from edgemllm.units import clock


def stream(
    source: str | None,
    questions: QuestionOptions,
    clip: options.ClipOptions,
    size: options.DetailOptions,
    feed: FeedOptions,
    kept: SessionOptions,
    archive: ArchiveOptions,
    run: options.RequestOptions,
    focus: options.FocusOptions,
    reply: options.AnswerOptions,
    output: options.JsonOptions,
    subtitles: SubtitleOptions,
    display: Display,
    dry_run: bool,
    interrupts: Interrupts,
) -> None:
    """Run the command until the source ends or `interrupts` end it."""
    out = answers_as(output.json, output.jsonl, subtitles.srt, subtitles.vtt)
    schedule, by_line = questions.schedules(lines=feed.text is not None)
    watched = _source(source, clip, feed)
    similarity = Similarity(feed.skip_similar) if feed.skip_similar is not None else None
    if kept.save is not None:
        session_file.check_place(kept.save)
    state = _earlier(kept.resume, kept.save, display, feed.text is not None)
    place = state.get("place")
    incoming = watched.open(place) if watched else GrowingText(feed.text or "-", feed.silence, place)
    with contextlib.closing(incoming), contextlib.ExitStack() as at_end:
        if watched:
            schedule.start = watched.start
            _check_times(schedule, watched)
        said = _said(feed.subtitles, watched)
        detail = size.detail()
        request = run.request(system=reply.system, detail=detail, **focus.of(schedule.questions + by_line.questions))
        if request.kv_budget == "auto" and state.get("kv_budget"):
            request = dataclasses.replace(request, kv_budget=str(state["kv_budget"]))
        launch = prepare(request, lambda config: _input_tokens(config, watched, schedule, detail))
        if dry_run:
            stop_after(launch, output.either)
        session = launch.open(display.step, make=at_end.enter_context(sessions(archive, display.report)))
        if state and kept.resume is not None:
            session_file.load(session, kept.resume)
        display.device, display.expected = launch.device, watched.video.expected if watched and watched.video else None
        sampling = Sampling(reply.max_tokens, reply.temperature, reply.top_p, reply.seed)
        rounds = Rounds(session, schedule, sampling, out, display, stopping=interrupts.asked)
        rounds.by_line = by_line
        stream = _stream(rounds, watched, incoming, similarity, clip.max_frames, said)
        stream.save_wanted, stream.save_to, stream.limit = interrupts.save_wanted, kept.save, limit(launch)
        stream.lines = _lines(feed.text or source, display)
        name_source(session, stream.name)
        if state:
            stream.resume(state)
            changed = changes(state, session)
            display.say(f"continuing from {kept.resume} at {clock(session.meter.video_s)}{changed}")
        interrupts.session = session
        out.start(**launch.describe(), source=stream.name)
        _watch(stream, out, interrupts)


def _stream(
    rounds: Rounds,
    watched: Source | None,
    incoming: Feed | GrowingText,
    similarity: Similarity | None,
    max_frames: int | None,
    said: Subtitles | None,
) -> Stream:
    """Return the run that asks while `incoming` comes: frames of the source that is `watched`, or a text."""
    if isinstance(incoming, GrowingText):
        return TextStream(rounds, incoming)
    assert watched is not None
    return FrameStream(rounds, watched, incoming, similarity, max_frames, said)


def _watch(run: Stream, out: Answers, interrupts: Interrupts) -> None:
    """Watch; whatever ends it, the session is saved if it is whole, and the output is closed."""
    failure: EdgeError | None = None
    try:
        run.run()
    except (MediaError, TextError) as error:
        failure = error
    except EdgeError as error:  # in the middle of a forward pass: the earlier file is the better one
        failure, run.save_to = error, None
    except OSError:  # nobody reads the answers any more, or there is no room for them
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
                run.display.report(f"error: {error.message}")
            failure = failure or error
    out.close(failure.exit_code if failure else interrupts.code, **run.summary())
    if failure is not None:
        raise failure


def _source(source: str | None, clip: options.ClipOptions, feed: FeedOptions) -> Source | None:
    """Return SOURCE and how it is watched; None where a text comes in its place. Raises UsageError for both or neither."""
    if (source is None) == (feed.text is None):
        which = "SOURCE and --text are both given" if source else "there is neither SOURCE nor --text"
        raise UsageError(which, "edgemllm stream rtsp://camera/live, or edgemllm stream --text app.log")
    if source is None:
        return None
    return Source(source, **clip.of(), live=feed.live, retries=feed.retries, timeout=feed.silence)


def _earlier(resume: Path | None, save: Path | None, display: Display, text: bool) -> dict[str, Any]:
    """Return the state of the run that is to continue; empty where there is none."""
    if resume is None:
        return {}
    if resume == save and not resume.exists():
        display.say(f"no saved session {resume} yet: from the beginning")
        return {}
    state = session_file.run_of(resume)
    if "place" not in state:
        raise UsageError(f"{resume} is a session, but of no stream", "edgemllm chat, then /load")
    if state["place"] and ("line" in state["place"]) != text:
        raise UsageError(f"{resume} is the session of {'frames' if text else 'a text'}", "the kind of source it was saved with")
    return state


def _said(path: str | None, source: Source | None) -> Subtitles | None:
    """Return the subtitles of a recording. Raises UsageError for another source, and MissingError."""
    if path is None:
        return None
    if source is None or source.video is None:
        raise UsageError(f"--subtitles {path}: only a recording has subtitles", "omit --subtitles")
    return Subtitles.of(path, source.source, source.end)


def _lines(source: str | None, display: Display) -> TypedLines | None:
    """Return the questions from standard input, unless it brings the images or the text."""
    if source == "-" or sys.stdin is None:
        return None
    lines = TypedLines(sys.stdin)
    if lines.interactive:
        display.say("type a question at any time (Enter alone opens a prompt that shows it); /help lists the commands")
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


def _input_tokens(config: Any, source: Source | None, schedule: Schedule, detail: Detail) -> int | None:
    """Estimate how many tokens the input has; None where its length is not known."""
    video = source.video if source else None
    if video is None or video.expected is None or video.span is None:
        return None
    frame = family_of(config.model_type).sizes(config, detail).frame_tokens
    rounds = [(question, video.span // every) for question, every in schedule.standing]
    rounds += [(question, 1) for question in (*schedule.final, *(question for _, question in schedule.timed))]
    return round(video.expected * frame + sum(count * question_tokens(question) for question, count in rounds))
