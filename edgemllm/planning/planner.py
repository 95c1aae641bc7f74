"""The plan of a run; where it does not fit, the fewest changes of the command line that would make it fit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from edgemllm import policies
from edgemllm.choices import DEFAULT_POLICY, ITEM_BYTES
from edgemllm.device.memory import human_bytes
from edgemllm.errors import UsageError
from edgemllm.planning.budget import KVBudget
from edgemllm.planning.case import Case
from edgemllm.planning.plan import Plan

_Change = tuple[str, dict[str, Any]]
"""What to type, and the fields it changes."""

CHUNKS = (512, 256, 128, 64, 32, 16)
"""Chunks to suggest, the largest first."""


def plan(case: Case) -> Plan:
    """Add up a case, and search for what to change if it does not fit.

    Raises UsageError for settings that mean nothing, DoesNotFitError for a KV budget that the policy cannot work with.
    """
    if case.dtype not in ITEM_BYTES or case.chunk < 1:
        raise UsageError(
            f"cannot plan for dtype {case.dtype} and chunk {case.chunk}", f"--dtype {'|'.join(ITEM_BYTES)} --chunk 256"
        )
    made = Plan.of(case, case.tokens())
    return made if made.fits else replace(made, suggestions=_suggest(case, made.kv_budget_tokens))


def _suggest(case: Case, tokens: int) -> tuple[str, ...]:
    """Return the fewest changes that make it fit: one option if that is enough, else two together, and so on."""
    groups = [group for group in (_smaller_weights(case), _smaller_chunk(case), _smaller_cache(case, tokens)) if group]
    for size in range(1, len(groups) + 1):
        found = [_first_fit(case, chosen) for chosen in itertools.combinations(groups, size)]
        if any(found):
            return tuple(line for line in found if line)
    return ()


def _first_fit(case: Case, groups: tuple[list[_Change], ...]) -> str:
    """Return the mildest combination of one change per group that fits, as text to type; empty if there is none."""
    for changes in itertools.product(*groups):
        tried = case
        for _, fields in changes:
            tried = replace(tried, **fields)
        made = Plan.of(tried, tried.tokens())
        # A chunk has to fit beside what the policy always keeps, or following the advice ends in the next error.
        chunk = _largest_chunk(tried, made.kv_budget_tokens)
        if not made.fits or chunk == 0:
            continue
        made = Plan.of(replace(tried, chunk=chunk), made.kv_budget_tokens)
        typed = [text for text, _ in changes if text] + ([f"--chunk {chunk}"] if chunk != case.chunk else [])
        return f"{' '.join(typed)}   needs {human_bytes(made.total_bytes)}"
    return ""


def _largest_chunk(case: Case, tokens: int) -> int:
    """Return the case's chunk or a smaller one that `tokens` per layer leave room for; 0 if none is worth typing."""
    room = tokens - case.least_tokens if case.limited else case.chunk
    return case.chunk if case.chunk <= room else next((size for size in CHUNKS if size <= room), 0)


def _smaller_weights(case: Case) -> list[_Change]:
    # Keys and values shrink with the weights.
    half = {"dtype": "bfloat16", "vision_dtype": "bfloat16", "shape": replace(case.shape, itemsize=ITEM_BYTES["bfloat16"])}
    changes: list[_Change] = [("--dtype bfloat16", half)] if case.dtype == "float32" else []
    least = "int4" if case.spec.on_cpu else "nf4"
    changes += [(f"--quant {name}", {"quant": name}) for name in ("int8", least) if _shrinks(case, name)]
    if case.dtype == "float32" and case.quant != least:
        changes.append((f"--dtype bfloat16 --quant {least}", {**half, "quant": least}))
    return changes


def _shrinks(case: Case, quant: str) -> bool:
    return replace(case, quant=quant).weights_bytes < case.weights_bytes


def _smaller_chunk(case: Case) -> list[_Change]:
    return [("", {"chunk": size}) for size in CHUNKS if 64 <= size < case.chunk]  # typed by _first_fit


def _smaller_cache(case: Case, tokens: int) -> list[_Change]:
    option, fields, least = "", {}, case.least_tokens
    if not case.policy.bounded:
        option, least = f"--policy {DEFAULT_POLICY} ", max(least, 1024)
        fields = {"policy": policies.build(DEFAULT_POLICY), "policy_name": DEFAULT_POLICY}
    sizes = [size for size in (8192, 4096, 2048, 1024, 512, 256) if least <= size < tokens]
    return [(f"{option}--kv-budget {size}", {**fields, "budget": KVBudget("tokens", size)}) for size in sizes]
