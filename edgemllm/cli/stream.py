"""`edgemllm stream`: watch a source for as long as it lasts, and answer on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edgemllm.cli.groups import grouped
from edgemllm.cli.help import Command
from edgemllm.commands import options
from edgemllm.commands.archive.options import ArchiveOptions
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.stream.options import FeedOptions, QuestionOptions, SessionOptions, SubtitleOptions
from edgemllm.commands.terminal import no_echo

StreamSource = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A video, /dev/video0, rtsp:// or http://, a GStreamer pipeline, a folder that grows, or - for JPEG and PNG "
        "images on standard input.",
        show_default=False,
    ),
]


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


@grouped()
def stream(
    *,
    source: StreamSource = None,
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
    screen: options.ScreenOptions,
    dry_run: options.DryRun = False,
) -> None:
    """Watch a source for hours in constant memory, answer questions.

    Lines typed or piped meanwhile are questions about everything seen so far; /help lists further commands.
    """
    with Interrupts(saves=True) as interrupts, no_echo() as echo:  # before anything slow is imported
        from edgemllm.commands.stream import command

        display = screen.display(echo)
        command.stream(
            source, questions, clip, size, feed, kept, archive, run, focus, reply, output, subtitles, display, dry_run,
            interrupts,
        )  # fmt: skip
    if interrupts.code:
        raise typer.Exit(interrupts.code)
