"""`edgemllm perplexity`: how well a model predicts an endless text from a cache of fixed size."""

from __future__ import annotations

from typing import Annotated

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.perplexity.options import CheckpointOptions, TextOptions

CompareFull = Annotated[
    bool,
    options.option(
        "--compare-full", help="Also measure the KL divergence from the full cache, as far as that fits.", panel=options.RUN
    ),
]


@grouped()
def perplexity(
    *,
    text: TextOptions,
    run: options.ComparedOptions,
    compare_full: CompareFull = False,
    kept: CheckpointOptions,
    output: options.JsonOptions,
    plot: options.Plot = None,
    screen: options.ScreenOptions,
    dry_run: options.DryRun = False,
) -> None:
    """Measure the perplexity of one stream of text of any length.

    Chunks of --chunk tokens go in, the policy evicts between them; --chunk 1 is what papers mean. Without --text the text
    comes from standard input.
    """
    from edgemllm.commands.perplexity import command

    command.perplexity(text, run, compare_full, kept, output, plot, screen, dry_run)
