"""`edgemllm plan`: what fits, before anything is loaded; on one device, or on all that have a profile."""

from __future__ import annotations

from edgemllm.cli.groups import grouped
from edgemllm.commands import options


@grouped()
def plan(
    *,
    run: options.RequestOptions,
    size: options.DetailOptions,
    output: options.JsonOptions,
    verbose: options.Verbose = False,
) -> None:
    """Show what a run needs and whether it fits. Exit 4 if it does not.

    --profile all: a table over every device; with --model all, of every known model.
    """
    from edgemllm.commands.plan import command

    command.plan(run, size, output)
