"""`edgemllm inspect`: pictures of attention, its entropy by layer, and of the slots that a policy kept."""

from __future__ import annotations

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.inspect.options import InputOptions, PictureOptions


@grouped()
def inspect(
    *,
    questions: options.Questions = None,
    shown: InputOptions,
    clip: options.ClipOptions,
    drawn: PictureOptions,
    run: options.ComparedOptions,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw what attention looks at and what policies keep.

    Writes attention.png, entropy.png (how spread attention is in each layer) and kept.png.
    --kv-budget auto is half of the input, or as much as the policies need at least.
    """
    from edgemllm.commands.inspect import command

    command.inspect(questions or [], shown, clip, drawn, run, json, quiet)
