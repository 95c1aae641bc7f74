"""The options of `edgemllm bench` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgemllm.commands.options import OUTPUT, RUN, option


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, how often, and in which form it is written."""

    context: Annotated[str, option("--context", help="Tokens of the prompt, one or more: 2k,32k.", panel=RUN)] = "2k"
    new_tokens: Annotated[int, option("--new-tokens", help="Tokens to decode after the first.", panel=RUN, min=1)] = 64
    repeat: Annotated[int, option("--repeat", help="How often a cell is measured, after a warm-up.", panel=RUN, min=1)] = 3
    compare_stock: Annotated[
        bool, option("--compare-stock", help="Also measure transformers' own generate with its growing cache.", panel=RUN)
    ] = False
    output: Annotated[str, option("--output", "-o", help="md, json, jsonl or csv.", panel=OUTPUT)] = "md"
