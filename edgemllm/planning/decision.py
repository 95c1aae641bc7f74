"""What a run is going to be, decided and planned before anything large is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgemllm.cache.bits import KVBits
from edgemllm.cache.focus import room
from edgemllm.choices import ITEM_BYTES, packs
from edgemllm.device import memory
from edgemllm.device.backend import device_of, dtype_of
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.media.detail import ANY
from edgemllm.models import shipped
from edgemllm.models.facts import ModelFacts
from edgemllm.planning import auto
from edgemllm.planning.case import Case
from edgemllm.planning.lookup import Terms, facts_of, terms_of
from edgemllm.planning.peaks import FRAMES_AT_ONCE, conversion_bytes
from edgemllm.planning.plan import Plan
from edgemllm.planning.planner import plan
from edgemllm.planning.request import Request

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.policies.base import CachePolicy


@dataclass(frozen=True)
class Decision:
    """Everything decided, nothing loaded."""

    request: Request
    profile: DeviceProfile
    policy_name: str
    policy: CachePolicy
    facts: ModelFacts
    quant: str
    """The weights' quantisation: asked for, chosen, or what the checkpoint was stored with."""

    dtype: str
    vision_dtype: str | None
    """Of everything outside the language model; None: there is nothing."""

    device: str
    chunk: int
    """Tokens of a prefill chunk; never more than the plan counts with."""

    budget: int | None
    """Tokens a layer; None: the cache grows."""

    bits: KVBits
    """Of keys and values."""

    plan: Plan
    memory: memory.Memory
    """What was free when it was planned."""

    focus: tuple[str, ...]
    """Texts whose queries score the cache, beforehand."""

    @property
    def head_quant(self) -> str:
        """Return how embeddings and output head are quantised: in 8 bits beside packed weights, else not at all."""
        return "int8" if packs(self.quant, self.device) and not self.facts.stored_as else "none"

    def describe(self) -> dict[str, Any]:
        """Return the fields every run's JSON begins with."""
        return {
            "model": self.request.model,
            "profile": self.profile.name,
            "policy": self.policy_name,
            "quant": self.quant,
            "head_quant": self.head_quant,
            "dtype": self.dtype,
            "vision_dtype": self.vision_dtype,
            "device": self.device,
            "focus": list(self.focus),
        }


def plan_only(request: Request, facts: ModelFacts | None = None) -> Decision:
    """Decide for a model and a machine that need not be here: a profile's memory is what such a machine has.

    `facts`: those of the request's model, where they were already found. Raises as `decide`, `terms_of` and `facts_of` do.
    """
    terms = terms_of(request)
    return decide(request, terms, facts or facts_of(request), elsewhere=request.profile != "auto")


def decide(
    request: Request, terms: Terms, facts: ModelFacts, input_tokens: int | None = None, elsewhere: bool = False
) -> Decision:
    """Decide everything; where no setting makes the model fit, the plan suggests a smaller one.

    `elsewhere`: for a machine like the profile's, not for this one. Raises UsageError, and DoesNotFitError for a KV budget
    that the policy cannot work with.
    """
    made = _decide(request, terms, facts, input_tokens, elsewhere)
    if made.plan.fits or made.plan.suggestions:
        return made
    return replace(made, plan=replace(made.plan, suggestions=(_smaller_model(made, elsewhere),)))


def _decide(request: Request, terms: Terms, facts: ModelFacts, input_tokens: int | None, elsewhere: bool) -> Decision:
    """Do the same without a suggestion of another model."""
    profile, policy_name, policy, budget = terms
    focus, bits = auto.focus(request, policy_name, policy), KVBits.parse(request.kv_bits)
    device, dtype, free = _machine(request, profile, elsewhere)
    spec = replace(facts.spec.with_patches(facts.sizes.patches), on_cpu=device == "cpu")
    case = Case(
        profile=profile,
        memory=free,
        spec=spec,
        shape=replace(facts.shape, itemsize=ITEM_BYTES[dtype], focus=room(policy, len(focus)), bits=bits),
        policy=policy,
        policy_name=policy_name,
        quant=auto.quant(request, facts, profile, device),
        dtype=dtype,
        chunk=request.chunk or profile.chunk,
        budget=budget,
        input_tokens=input_tokens,
        vision_dtype=auto.vision_dtype(request, facts, device, dtype, here=not elsewhere or profile.memory is None),
        frames=max(1, FRAMES_AT_ONCE // (spec.vision.frames if spec.vision else 1)),
    )
    if focus and not request.focus and not auto.worth_it(case):
        focus, case = (), replace(case, shape=replace(case.shape, focus=0))
    made = plan(case)
    if facts.converted:
        made = replace(made, host_peak_bytes=conversion_bytes(spec, case.quant, dtype, resident=free.kind != "discrete"))
    slots = made.kv_budget_tokens if case.limited else None
    quant, chunk = facts.stored_as or case.quant, auto.chunk(request, case, slots, facts.sizes.indivisible)
    return Decision(
        request, profile, policy_name, policy, facts, quant, dtype, case.vision_dtype, device, chunk, slots, bits, made, free,
        focus,
    )  # fmt: skip


def _machine(request: Request, profile: DeviceProfile, elsewhere: bool) -> tuple[str, str, memory.Memory]:
    """Return device, dtype and free memory: a plan for another machine takes that machine's word, a run takes what is here."""
    device = profile.backend if elsewhere and request.device == "auto" else device_of(request.device, profile)
    free = profile.idle_memory() if elsewhere else memory.probe(device)
    return device, dtype_of(request.dtype, profile, device, elsewhere), free


def _smaller_model(decision: Decision, elsewhere: bool) -> str:
    """Return what to type where no setting makes this model fit: the largest of the shipped ones that does, or more memory."""
    spec = decision.facts.spec
    for name in shipped.smaller(spec.parameters, spec.vision is not None):
        smaller = replace(decision.request, model=name, detail=ANY)
        try:
            made = _decide(smaller, terms_of(smaller), facts_of(smaller), None, elsewhere).plan
        except (DoesNotFitError, UsageError):  # an option of this run means nothing there
            continue
        if made.fits:
            return f"--model {name}   needs {memory.human_bytes(made.total_bytes)}"
    return "a device with more memory: no model that edgemllm knows fits here with these options"
