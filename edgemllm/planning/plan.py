"""What fits: weights + vision + activations + KV cache + margin against free memory, in whole bytes, before loading.

The peaks are added up as if they came together, and prefill scratch is counted as if attention scores were
materialised: the plan may refuse what would just have fitted, but should not let through what would not.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgemllm.device.memory import Memory, human_bytes
from edgemllm.device.profiles import DeviceProfile
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.models.spec import ITEM_BYTES, ModelSpec
from edgemllm.planning.budget import KVBudget, parse_kv_budget
from edgemllm.planning.peaks import NOTHING, Scratch, activation_bytes, vision_bytes
from edgemllm.planning.slots import Case, tokens_per_layer

__all__ = ["KVBudget", "ModelSpec", "Plan", "Scratch", "activation_bytes", "parse_kv_budget", "plan", "vision_bytes"]

_Change = tuple[str, dict[str, Any]]
"""What to type, and the fields it changes."""

LAUNCH_S = 0.001
"""About what a decoded token costs in kernel launches alone: where reading memory takes less, bandwidth is not the limit."""

CHUNKS = (512, 256, 128, 64, 32, 16)
"""Chunks to suggest, the largest first."""

JSON_FIELDS = (
    "fits",
    "weights_bytes",
    "vision_bytes",
    "activation_bytes",
    "kv_bytes",
    "margin_bytes",
    "total_bytes",
    "free_bytes",
    "kv_budget_tokens",
    "kv_bytes_per_token",
    "suggestions",
)


@dataclass(frozen=True)
class Plan:
    """The bytes of each part, and what to change if they do not fit."""

    fits: bool
    weights_bytes: int
    vision_bytes: int
    activation_bytes: int
    kv_bytes: int
    margin_bytes: int
    total_bytes: int
    free_bytes: int
    kv_budget_tokens: int
    """Tokens a layer; for `full` the longest input that this plan allows."""

    kv_bytes_per_token: int
    suggestions: tuple[str, ...] = ()
    """Changes of the command line, each of which alone would make it fit."""

    decode_tps_ceiling: float | None = None
    """Tokens a second if decoding did nothing but read memory: a ceiling, real speed is lower.

    None where the bandwidth is unknown, or so much higher than the model is large that it is not what limits."""

    where: str = ""
    """The kind of memory, its source and the device, for messages."""

    def as_json(self) -> dict[str, Any]:
        """The fields of a plan in JSON."""
        values = asdict(self)
        return {name: values[name] for name in JSON_FIELDS} | {"suggestions": list(self.suggestions)}

    def error(self) -> DoesNotFitError:
        """What is needed, what is free, and what to type."""
        parts = [("weights", self.weights_bytes), ("kv", self.kv_bytes), ("vision", self.vision_bytes)]
        parts += [("activations", self.activation_bytes), ("margin", self.margin_bytes)]
        needed = " + ".join(f"{name} {human_bytes(size)}" for name, size in parts if size)
        message = (
            "this will not fit\n"
            f"  needed   {needed} = {human_bytes(self.total_bytes)}\n"
            f"  free     {human_bytes(self.free_bytes)}  ({self.where})"
        )
        advice = self.suggestions or ("a smaller model: no setting makes this one fit here",)
        return DoesNotFitError(message, "\n       ".join(advice))


def plan(
    profile: DeviceProfile,
    memory: Memory,
    spec: ModelSpec,
    quant: str,
    dtype: str,
    chunk: int,
    budget: KVBudget,
    kv_bytes_per_token: int,
    kv_fixed_bytes: int,
    minimum_tokens: int,
    input_tokens: int | None,
    policy_name: str,
    bounded: bool = True,
    *,
    renumbers: bool = True,
    scratch: Scratch = NOTHING,
    frames: int = 1,
    bounded_kv_bytes_per_token: int | None = None,
) -> Plan:
    """The plan of one run.

    Not `bounded`: the policy never evicts, and
    `bounded_kv_bytes_per_token` is what a policy that does would take. `renumbers`: positions stay inside the
    cache's length. `frames`: encoded at once. `scratch`: what the policy needs besides its cache.
    """
    if dtype not in ITEM_BYTES or chunk < 1:
        raise UsageError(f"cannot plan for dtype {dtype} and chunk {chunk}", f"--dtype {'|'.join(ITEM_BYTES)} --chunk 256")
    case = Case(
        profile, memory, spec, quant, dtype, chunk, budget, kv_bytes_per_token, kv_fixed_bytes, minimum_tokens,
        input_tokens, policy_name, not bounded, renumbers, scratch, frames,
        bounded_kv_bytes_per_token,
    )  # fmt: skip
    made = _add_up(case, tokens_per_layer(case))
    if made.fits:
        return made
    return replace(made, suggestions=_suggest(case, made.kv_budget_tokens))


def _add_up(case: Case, tokens: int) -> Plan:
    spec = case.spec
    weights = spec.weights_bytes(case.quant, case.dtype)
    vision = vision_bytes(spec.vision, spec.hidden, case.dtype, case.frames)
    activation = activation_bytes(spec, case.quant, case.dtype, case.chunk, tokens, case.scratch)
    kv = case.kv_fixed_bytes + tokens * case.kv_bytes_per_token
    total = weights + vision + activation + kv + case.profile.margin
    bandwidth = case.profile.bandwidth_gb_s
    read = spec.decode_read_bytes(case.quant, case.dtype) + kv
    return Plan(
        fits=total <= case.memory.free_bytes,
        weights_bytes=weights,
        vision_bytes=vision,
        activation_bytes=activation,
        kv_bytes=kv,
        margin_bytes=case.profile.margin,
        total_bytes=total,
        free_bytes=case.memory.free_bytes,
        kv_budget_tokens=tokens,
        kv_bytes_per_token=case.kv_bytes_per_token,
        decode_tps_ceiling=bandwidth * 1e9 / read if bandwidth and read >= bandwidth * 1e9 * LAUNCH_S else None,
        where=f"{case.memory.source}; {case.memory.kind} memory, {case.profile.title}",
    )


def _suggest(case: Case, tokens: int) -> tuple[str, ...]:
    """The fewest changes that make it fit: one option if that is enough, else two together, and so on."""
    groups = [group for group in (_smaller_weights(case), _smaller_chunk(case), _smaller_cache(case, tokens)) if group]
    for size in range(1, len(groups) + 1):
        found = [_first_fit(case, chosen) for chosen in itertools.combinations(groups, size)]
        if any(found):
            return tuple(line for line in found if line)
    return ()


def _first_fit(case: Case, groups: tuple[list[_Change], ...]) -> str:
    """The mildest combination of one change a group that fits, as text to type; empty if there is none."""
    for changes in itertools.product(*groups):
        tried = case
        for _, fields in changes:
            tried = replace(tried, **fields)
        made = _add_up(tried, tokens_per_layer(tried))
        # A chunk has to fit beside what the policy always keeps, or following the advice ends in the next error.
        chunk = _largest_chunk(tried, made.kv_budget_tokens)
        if not made.fits or chunk == 0:
            continue
        made = _add_up(replace(tried, chunk=chunk), made.kv_budget_tokens)
        typed = [text for text, _ in changes if text] + ([f"--chunk {chunk}"] if chunk != case.chunk else [])
        return f"{' '.join(typed)}   needs {human_bytes(made.total_bytes)}"
    return ""


def _largest_chunk(case: Case, tokens: int) -> int:
    """The case's chunk or a smaller one that `tokens` a layer have room for; 0 if there is none worth typing."""
    room = case.chunk if case.unbounded else tokens - case.minimum_tokens
    return case.chunk if case.chunk <= room else next((size for size in CHUNKS if size <= room), 0)


def _smaller_weights(case: Case) -> list[_Change]:
    changes: list[_Change] = []
    if case.dtype == "float32":
        changes.append(("--dtype bfloat16", {"dtype": "bfloat16"}))
    changes += [(f"--quant {name}", {"quant": name}) for name in ("int8", "nf4") if _shrinks(case, name)]
    if case.dtype == "float32" and case.quant != "nf4":
        changes.append(("--dtype bfloat16 --quant nf4", {"dtype": "bfloat16", "quant": "nf4"}))
    return changes


def _shrinks(case: Case, quant: str) -> bool:
    return case.spec.weights_bytes(quant, case.dtype) < case.spec.weights_bytes(case.quant, case.dtype)


def _smaller_chunk(case: Case) -> list[_Change]:
    return [("", {"chunk": size}) for size in CHUNKS if 64 <= size < case.chunk]  # typed by _first_fit


def _smaller_cache(case: Case, tokens: int) -> list[_Change]:
    fields: dict[str, Any] = {}
    option, least = "", case.minimum_tokens
    if case.unbounded:
        # Another policy keeps notes beside keys and values: never more than those, unless the caller knows better.
        option, least = "--policy inf-mllm ", max(least, 1024)
        cost = case.bounded_kv_bytes_per_token or 2 * case.kv_bytes_per_token
        # What that policy always keeps is not known here: half of the smallest cache is more than it needs.
        fields = {"unbounded": False, "kv_bytes_per_token": cost, "minimum_tokens": max(case.minimum_tokens, 512)}
    sizes = [size for size in (8192, 4096, 2048, 1024, 512, 256) if least <= size < tokens]
    return [(f"{option}--kv-budget {size}", {**fields, "budget": KVBudget("tokens", size)}) for size in sizes]
