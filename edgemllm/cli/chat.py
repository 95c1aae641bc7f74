"""`edgemllm chat`: questions about video, images and text."""

from __future__ import annotations

from typing import Annotated

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.archive.options import ArchiveOptions
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.terminal import no_echo


@grouped()
def chat(
    *,
    questions: options.Questions = None,
    video: options.Videos = [],  # noqa: B006
    image: Annotated[list[str], options.option("--image", help="A still image; repeatable.", panel=options.MEDIA)] = [],  # noqa: B006
    words: options.WordOptions,
    clip: options.ClipOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    focus: options.FocusOptions,
    kept: ArchiveOptions,
    reply: options.AnswerOptions,
    output: options.JsonOptions,
    screen: options.ScreenOptions,
    dry_run: options.DryRun = False,
) -> None:
    """Ask about video, images and text of any length.

    Without a question: a conversation on a terminal (/help), otherwise one question or /command a line from standard input.
    """
    with Interrupts() as interrupts, no_echo() as echo:  # before anything slow is imported
        from edgemllm.commands.chat import command

        display = screen.display(echo)
        command.chat(
            questions or [], video, image, words, clip, size, run, focus, kept, reply, output, display, dry_run, interrupts
        )  # fmt: skip
