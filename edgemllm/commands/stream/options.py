"""The options of `edgemllm stream` that no other command has, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import ASKING, MEDIA, OUTPUT, RUN, Subtitles, option
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.units import parse_time


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked, and when."""

    ask: Annotated[list[str], option("--ask", help="A standing question; repeatable. See --every.", panel=ASKING)] = field(
        default_factory=list
    )
    every: Annotated[
        list[str],
        option(
            "--every",
            help="How often: 30s, 5m, 1000lines of a text; one for all standing questions or one for each. [default: 30s]",
            panel=ASKING,
        ),
    ] = field(default_factory=list)
    at: Annotated[
        list[str],
        option(
            "--at",
            help="A question at a time or line of the stream, or at its end: --at 00:10:00 'Who came?'; repeatable.",
            panel=ASKING,
            metavar="TIME QUESTION",
        ),
    ] = field(default_factory=list)

    def schedules(self, lines: bool) -> tuple[Schedule, Schedule]:
        """Return the questions with their times, and with their lines where there are `lines`. Raises UsageError."""
        if lines:
            return Schedule.parse_both(self.ask, self.every, self.at)
        return Schedule.parse(self.ask, self.every, self.at), Schedule()


@dataclass(frozen=True)
class FeedOptions:
    """How frames, or the lines of a text, come in."""

    text: Annotated[
        str | None,
        option(
            "--text", help="In place of SOURCE: a text file that grows, a named pipe, or - for standard input.", panel=MEDIA
        ),
    ] = None

    subtitles: Subtitles = None
    live: Annotated[
        bool | None,
        option(
            "--live/--no-live",
            help="Process in real time; drop frames the model cannot keep up with. [default: live sources only]",
            panel=MEDIA,
        ),
    ] = None
    retries: Annotated[
        int, option("--retries", help="Attempts to connect to a lost source again; -1: indefinitely.", panel=MEDIA, min=-1)
    ] = 10
    timeout: Annotated[
        str | None,
        option(
            "--timeout",
            help="Silence after which an address is lost (10s), or a folder or text has ended (never).",
            panel=MEDIA,
        ),
    ] = None
    skip_similar: Annotated[
        float | None,
        option(
            "--skip-similar", help="Skip frames this similar to the last one seen, such as 0.98. [default: none]", panel=MEDIA
        ),
    ] = None

    @property
    def silence(self) -> float | None:
        """Return `--timeout` in seconds."""
        return parse_time(self.timeout) if self.timeout else None


@dataclass(frozen=True)
class SessionOptions:
    """Where the session is kept between two runs."""

    save: Annotated[
        Path | None, option("--save", help="Write the session to this file at the end, and on SIGTERM and SIGUSR1.", panel=RUN)
    ] = None
    resume: Annotated[
        Path | None,
        option(
            "--resume", help="Continue from a saved session; where --save names the same file, it need not exist.", panel=RUN
        ),
    ] = None


@dataclass(frozen=True)
class SubtitleOptions:
    """Subtitles on standard output."""

    srt: Annotated[bool, option("--srt", help="The answers as SRT subtitles on stdout.", panel=OUTPUT)] = False
    vtt: Annotated[bool, option("--vtt", help="The answers as WebVTT subtitles on stdout.", panel=OUTPUT)] = False
