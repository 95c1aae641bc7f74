"""The options of `edgemllm perplexity` that no other command has, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import RUN, TEXT, option


@dataclass(frozen=True)
class TextOptions:
    """What is scored."""

    text: Annotated[
        list[str],
        option("--text", help="A file, a folder, - for standard input, wikitext103 or pg19; repeatable.", panel=TEXT),
    ] = field(default_factory=list)
    tokens: Annotated[str | None, option("--tokens", help="How many to score: 4M, 250k, 1e6. [default: all]", panel=TEXT)] = (
        None
    )
    loop: Annotated[bool, option("--loop", help="Start the text again where it ends.", panel=TEXT)] = False


@dataclass(frozen=True)
class CheckpointOptions:
    """Where a long run is kept."""

    checkpoint: Annotated[
        Path | None, option("--checkpoint", help="Write the state of the run to this file, for --resume.", panel=RUN)
    ] = None
    checkpoint_every: Annotated[
        str, option("--checkpoint-every", help="Number of tokens between two checkpoints.", panel=RUN)
    ] = "100k"
    resume: Annotated[bool, option("--resume", help="Continue from the checkpoint, if there is one.", panel=RUN)] = False
