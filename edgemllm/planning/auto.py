"""What `auto` chooses, and what cannot be chosen together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgemllm import policies
from edgemllm.device import processor
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.planning import chunk_size

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.models.facts import ModelFacts
    from edgemllm.planning.case import Case
    from edgemllm.planning.request import Request
    from edgemllm.policies.base import CachePolicy

MOST_KNOWN = 8
"""Known questions that become the focus by themselves; each takes room, and takes it from the others."""

SMALL_MODEL = 200_000_000
"""Below this many quantisable parameters `--quant auto` leaves the weights alone: nothing to gain, quality to lose."""

LARGE_TOWER = 4_000_000
"""Parameters outside the language model from which on bfloat16 was seen to gain (docs/measurements/neighbours.md)."""


def focus(request: Request, name: str, policy: CachePolicy) -> tuple[str, ...]:
    """Return what the cache looks out for: of many known questions nothing, as a focus on everything is none."""
    if any(not text.strip() for text in request.focus):
        raise UsageError("a --focus is empty", "--focus 'people at the door'")
    if request.focus and not policy.takes_focus:
        able = [other for other in policies.names() if policies.build(other, ()).takes_focus]
        raise UsageError(f"--focus: policy {name} takes no focus", f"--policy {', '.join(able)}; or omit --focus")
    if request.focus or not policy.takes_focus:
        return tuple(request.focus)
    return tuple(request.known) if len(request.known) <= MOST_KNOWN else ()


def worth_it(case: Case) -> bool:
    """Return whether the queries of a focus that nobody asked for leave nine tenths of the slots."""
    try:
        return case.tokens() >= 0.9 * replace(case, shape=replace(case.shape, focus=0)).tokens()
    except DoesNotFitError:
        return False


def quant(request: Request, facts: ModelFacts, profile: DeviceProfile, device: str) -> str:
    """Return how to quantise the weights; none for a checkpoint that was quantised beforehand."""
    if request.quant == "int4" and device != "cpu":
        raise UsageError(f"--quant int4 is packed for processors, and this runs on {device}", "--quant nf4")
    if facts.prequantised_with:
        if request.quant not in ("auto", "none"):
            raise UsageError(
                f"--quant {request.quant}: {request.model} is already quantised with {facts.prequantised_with}",
                "omit --quant",
            )
        return "none"
    if request.quant != "auto":
        return request.quant
    if facts.spec.linear_parameters < SMALL_MODEL:
        return "none"
    # A profile's 4 bits are those of its own device.
    return "nf4" if profile.weights == "int4" and device != "cpu" else profile.weights


def vision_dtype(request: Request, facts: ModelFacts, device: str, dtype: str, here: bool) -> str | None:
    """Return the dtype of what is outside the language model; `here`: on this machine, whose flags decide, no stopwatch."""
    if facts.spec.vision is None:
        return None
    large = facts.spec.vision_parameters >= LARGE_TOWER and not facts.prequantised_with
    gains = request.dtype == "auto" and device == "cpu" and large and here and processor.multiplies_bfloat16()
    return "bfloat16" if gains else dtype


def chunk(request: Request, case: Case, slots: int | None, indivisible: int) -> int:
    """Return the chunk asked for, or the profile's as far as a budget of `slots` tokens per layer takes it."""
    if slots is None:
        return case.chunk
    if request.chunk is None:
        return chunk_size.default(case.chunk, slots, case.policy, indivisible)
    chunk_size.check(request.chunk, slots, case.policy)
    return request.chunk
