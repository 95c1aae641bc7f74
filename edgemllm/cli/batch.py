"""`edgemllm batch`: questions about many videos, a line for each."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from edgemllm.cli.groups import grouped
from edgemllm.cli.help import Command
from edgemllm.commands import options
from edgemllm.commands.batch.options import FleetOptions, WorkOptions
from edgemllm.commands.interrupts import Interrupts

VideoWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VIDEO...",
        help="Files, folders, patterns, or lists (.jsonl, .parquet) of {id, video or text, questions}.",
        show_default=False,
    ),
]
ADDRESS = re.compile(r"auto|local|(ray://)?[\w.-]+:\d+")
"""What the word after --ray is taken as; any other is a video."""


class BatchCommand(Command):
    """Takes `--ray` with and without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell the address out before the parser sees it."""
        return super().parse_args(ctx, _addressed(args))


def _addressed(args: list[str]) -> list[str]:
    found: list[str] = []
    for word in args:
        if found[-1:] == ["--ray"]:
            found[-1] = f"--ray={word}" if ADDRESS.fullmatch(word) else "--ray=here"
            if found[-1] != "--ray=here":
                continue
        found.append(word)
    return ["--ray=here" if word == "--ray" else word for word in found]


@grouped()
def batch(
    *,
    videos: VideoWords = None,
    work: WorkOptions,
    fleet: FleetOptions,
    clip: options.ClipOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    focus: options.FocusOptions,
    reply: options.AnswerOptions,
    screen: options.ScreenOptions,
    dry_run: options.DryRun = False,
) -> None:
    """Ask the same, or each its own, about many videos.

    A JSON line per video as soon as it is done; a video that fails is a line with its error, and the exit code says so.
    Without --ray, one model in this process.
    """
    with Interrupts() as interrupts:  # before anything slow is imported
        from edgemllm.commands.batch import command

        command.batch(videos or [], work, fleet, clip, size, run, focus, reply, screen.display(), dry_run, interrupts)
