"""`edgemllm recall`: what each policy still knows of a long stream, at equal bytes."""

from __future__ import annotations

from typing import Annotated

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.recall.options import StreamOptions

Against = Annotated[
    str | None,
    options.option("--against", help="The policy of the paired differences. [default: the first]", panel=options.RUN),
]


@grouped(kv_budget="10%")
def recall(
    *,
    streams: StreamOptions,
    against: Against = None,
    run: options.ComparedOptions,
    output: options.JsonOptions,
    plot: options.Plot = None,
    screen: options.ScreenOptions,
) -> None:
    """Count which facts of long streams each policy still knows.

    Facts lie at known distances between footage or prose; all policies see the same streams with the same KV bytes. The
    policies oracle (knows what will be asked) and random show what is possible and what is luck. --kv-budget takes a
    list, 5%,10%,15%. The policy full keeps everything, without a budget: the reference that shows what the model cannot
    do from what a policy lost.

    Text models are asked about dates, places and the like in real prose: --haystack book.txt. --needles auto tries which of
    them the model answers with the full cache, and says so.
    """
    from edgemllm.commands.recall import command

    command.recall(streams, against, run, output, plot, screen)
