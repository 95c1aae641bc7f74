"""`edgemllm bench`: how fast policies are, side by side."""

from __future__ import annotations

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.bench.options import BenchOptions


@grouped()
def bench(
    *,
    measured: BenchOptions,
    run: options.ComparedOptions,
    written: options.JsonOptions,
    screen: options.ScreenOptions,
    dry_run: options.DryRun = False,
) -> None:
    """Measure speed and memory of policies, contexts and budgets.

    --policy, --context, --kv-budget and --quant take several values with commas: every combination runs in a process of its
    own. Measured are time to first token, prefill and decode speed, live KV bytes and peak memory.
    """
    from edgemllm.commands.bench import command

    command.bench(measured, run, written, screen, dry_run)
