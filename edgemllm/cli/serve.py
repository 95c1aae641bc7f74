"""`edgemllm serve`: an OpenAI-compatible server."""

from __future__ import annotations

import typer

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.archive.options import FolderOptions
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.serve.extra import check_extra
from edgemllm.commands.serve.options import SafetyOptions, ServerOptions, WatchOptions


@grouped()
def serve(
    *,
    server: ServerOptions,
    safety: SafetyOptions,
    watch: WatchOptions,
    kept: FolderOptions,
    clip: options.SamplingOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    reply: options.AnswerOptions,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Answer OpenAI's API about text, pictures and video.

    One model answers many clients, their steps interleaved, each in a KV cache of its own that was planned before. Sessions
    (/v1/sessions) watch cameras for days, and a page at / shows what they see, say and still remember.
    """
    check_extra()
    with Interrupts() as interrupts:  # before anything slow is imported
        from edgemllm.commands.serve import command

        command.serve(server, safety, watch, kept, clip, size, run, reply, quiet, verbose, dry_run)
    if interrupts.code:
        raise typer.Exit(interrupts.code)
