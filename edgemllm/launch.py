"""From what the user asked for to an open session: profile, policy, plan, weights, in that order.

Nothing large is loaded before the plan says that it fits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgemllm import policies
from edgemllm.cache.bits import KVBits
from edgemllm.cache.focus import room
from edgemllm.choices import DEVICES, DTYPES, ITEM_BYTES, QUANTISATIONS, packs
from edgemllm.device import detect, memory, processor
from edgemllm.device.backend import device_of, dtype_of
from edgemllm.errors import DoesNotFitError, OutOfMemoryError, UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.models import shipped
from edgemllm.models.facts import ModelFacts, recorded
from edgemllm.planning import chunk_size
from edgemllm.planning.budget import KVBudget, parse_kv_budget
from edgemllm.planning.case import Case
from edgemllm.planning.peaks import FRAMES_AT_ONCE, conversion_bytes
from edgemllm.planning.plan import Plan
from edgemllm.planning.planner import plan

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.models.families.base import ModelFamily
    from edgemllm.models.loading import Checkpoint
    from edgemllm.policies.base import CachePolicy
    from edgemllm.session import Session

MOST_KNOWN = 8
"""Known questions that become the focus by themselves; each takes room, and takes it from the others."""

SMALL_MODEL = 200_000_000
"""Below this many quantisable parameters `--quant auto` leaves the weights alone: nothing to gain, quality to lose."""

LARGE_TOWER = 4_000_000
"""Parameters outside the language model from which on bfloat16 was seen to gain (docs/measurements/neighbours.md)."""


@dataclass(frozen=True)
class Request:
    """What the options say, before anything is looked up."""

    model: str = "demo"
    profile: str = "auto"
    policy: str | None = None
    settings: Sequence[str] = ()
    kv_budget: str = "auto"
    quant: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    chunk: int | None = None
    offline: bool = False
    trust_remote_code: bool = False
    system: str | None = None
    detail: Detail = ANY
    focus: Sequence[str] = ()
    """What the cache is to look out for; an error with a policy that cannot."""

    known: Sequence[str] = ()
    """Questions that will be asked: the focus, unless another was asked for, of a policy that takes one."""

    kv_bits: str = "auto"


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


@dataclass(frozen=True)
class Launch(Decision):
    """A decision about a checkpoint that is there, ready to open."""

    checkpoint: Checkpoint

    def open(
        self, on_step: Callable[[Session], None] | None = None, family: ModelFamily | None = None, make: Any = None
    ) -> Session:
        """Load the weights, or take those of `family`, and `make` an empty session.

        Raises DoesNotFitError before loading anything.
        """
        if not self.plan.fits:
            raise self.plan.error()
        from edgemllm.models.loading import load

        if family is None:
            with out_of_memory():
                trust, detail = self.request.trust_remote_code, self.request.detail
                family = load(self.checkpoint, self.quant, self.dtype, self.device, trust, detail, self.vision_dtype)
        session = self.session(family, make)
        if on_step is not None:
            session.on_step = on_step
        return session

    def session(self, family: ModelFamily, make: Any = None, **other: Any) -> Session:
        """`make` an empty session of a loaded model as was decided; `other`: a system prompt or a focus that differ."""
        from edgemllm.session import Session

        decided = {"system": self.request.system, "focus": self.focus, "bits": self.bits}
        session: Session = (make or Session)(family, self.policy, self.budget, self.chunk, **{**decided, **other})
        return session


def prepare(
    request: Request,
    input_tokens: Callable[[Any], int | None] = lambda config: None,
    checkpoint: Checkpoint | None = None,
) -> Launch:
    """Decide everything and plan it. `input_tokens` gives the length of the input, where it can be known, from the config.

    `checkpoint`: that of the request, where it was already looked up.

    Raises UsageError, MissingError, and DoesNotFitError for a KV budget that the policy cannot work with.
    """
    from edgemllm.models.loading import locate

    wanted = _wanted(request)
    checkpoint = checkpoint or locate(request.model, request.offline, request.trust_remote_code, _say)
    facts = checkpoint.facts(request.detail)
    made = _advised(_decide(request, wanted, facts, input_tokens(checkpoint.config)), elsewhere=False)
    return Launch(**vars(made), checkpoint=checkpoint)


def plan_only(request: Request, facts: ModelFacts | None = None) -> Decision:
    """Do as `prepare` for a model and a machine that need not be here: a profile's memory is what such a machine has.

    `facts`: those of the request's model, where they were already found.
    """
    wanted = _wanted(request)
    elsewhere = request.profile != "auto"
    return _advised(_decide(request, wanted, facts or facts_of(request), elsewhere=elsewhere), elsewhere)


def facts_of(request: Request) -> ModelFacts:
    """Return what planning has to know of the request's model: of one that comes with edgemllm, without importing torch.

    Any other model, and pictures of a chosen detail, take its configuration. Raises MissingError and UsageError.
    """
    name = shipped.architecture(request.model)
    found = recorded(name) if request.detail == ANY else None
    if found is None:
        from edgemllm.models.loading import locate

        found = locate(name, request.offline, request.trust_remote_code, _say).facts(request.detail)
    return found


def _wanted(request: Request) -> tuple[DeviceProfile, str, CachePolicy, KVBudget]:
    """Look up what needs no model: profile, policy's name, policy and KV budget. Raises UsageError."""
    _check(request)
    profile = detect.profile(request.profile)
    name = request.policy or profile.cache.policy
    return profile, name, policies.build(name, request.settings), parse_kv_budget(request.kv_budget)


def _decide(
    request: Request,
    wanted: tuple[DeviceProfile, str, CachePolicy, KVBudget],
    facts: ModelFacts,
    input_tokens: int | None = None,
    elsewhere: bool = False,
) -> Decision:
    """Add up a request; `elsewhere`: for a machine like the profile's, not for this one."""
    profile, policy_name, policy, budget = wanted
    focus, bits = _focus(request, policy_name, policy), KVBits.parse(request.kv_bits)
    device, dtype, free = _machine(request, profile, elsewhere)
    spec = replace(facts.spec.with_patches(facts.sizes.patches), on_cpu=device == "cpu")
    case = Case(
        profile=profile,
        memory=free,
        spec=spec,
        shape=replace(facts.shape, itemsize=ITEM_BYTES[dtype], focus=room(policy, len(focus)), bits=bits),
        policy=policy,
        policy_name=policy_name,
        quant=_quant(request, facts, profile, device),
        dtype=dtype,
        chunk=request.chunk or profile.chunk,
        budget=budget,
        input_tokens=input_tokens,
        vision_dtype=_vision_dtype(request, facts, device, dtype, here=not elsewhere or profile.memory is None),
        frames=max(1, FRAMES_AT_ONCE // (spec.vision.frames if spec.vision else 1)),
    )
    if focus and not request.focus and not _worth_it(case):
        focus, case = (), replace(case, shape=replace(case.shape, focus=0))
    made = plan(case)
    if facts.converted:
        made = replace(made, host_peak_bytes=conversion_bytes(spec, case.quant, dtype, resident=free.kind != "discrete"))
    slots = made.kv_budget_tokens if case.limited else None
    quant, chunk = facts.stored_as or case.quant, _chunk(request, case, slots, facts.sizes.indivisible)
    return Decision(
        request, profile, policy_name, policy, facts, quant, dtype, case.vision_dtype, device, chunk, slots, bits, made, free,
        focus,
    )  # fmt: skip


def _advised(made: Decision, elsewhere: bool) -> Decision:
    """Return a decision, with a smaller model to type where no setting makes this one fit."""
    if made.plan.fits or made.plan.suggestions:
        return made
    return replace(made, plan=replace(made.plan, suggestions=(_smaller_model(made, elsewhere),)))


def _machine(request: Request, profile: DeviceProfile, elsewhere: bool) -> tuple[str, str, memory.Memory]:
    """Return device, dtype and free memory: a plan for another machine takes that machine's word, a run takes what is here."""
    device = profile.backend if elsewhere and request.device == "auto" else device_of(request.device, profile)
    free = profile.idle_memory() if elsewhere else memory.probe(device)
    return device, dtype_of(request.dtype, profile, device, elsewhere), free


def _check(request: Request) -> None:
    """Raise UsageError for a word that no option knows."""
    for name, value, choices in (
        ("quant", request.quant, QUANTISATIONS), ("dtype", request.dtype, DTYPES), ("device", request.device, DEVICES),
    ):  # fmt: skip
        if value not in ("auto", *choices):
            raise UsageError(f"--{name} {value} is unknown", f"one of auto, {', '.join(choices)}")
    if request.chunk is not None and request.chunk < 1:
        raise UsageError(f"--chunk {request.chunk} feeds nothing", "a number from 1 upwards")


def _focus(request: Request, name: str, policy: CachePolicy) -> tuple[str, ...]:
    """Return what the cache looks out for: of many known questions nothing, as a focus on everything is none."""
    if any(not text.strip() for text in request.focus):
        raise UsageError("a --focus is empty", "--focus 'people at the door'")
    if request.focus and not policy.takes_focus:
        able = [other for other in policies.names() if policies.build(other, ()).takes_focus]
        raise UsageError(f"--focus: policy {name} takes no focus", f"--policy {', '.join(able)}; or omit --focus")
    if request.focus or not policy.takes_focus:
        return tuple(request.focus)
    return tuple(request.known) if len(request.known) <= MOST_KNOWN else ()


def _worth_it(case: Case) -> bool:
    """Return whether the queries of a focus that nobody asked for leave nine tenths of the slots."""
    try:
        return case.tokens() >= 0.9 * replace(case, shape=replace(case.shape, focus=0)).tokens()
    except DoesNotFitError:
        return False


def _quant(request: Request, facts: ModelFacts, profile: DeviceProfile, device: str) -> str:
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


def _chunk(request: Request, case: Case, slots: int | None, indivisible: int) -> int:
    """Return the chunk asked for, or the profile's as far as a budget of `slots` tokens per layer takes it."""
    if slots is None:
        return case.chunk
    if request.chunk is None:
        return chunk_size.default(case.chunk, slots, case.policy, indivisible)
    chunk_size.check(request.chunk, slots, case.policy)
    return request.chunk


def _smaller_model(decision: Decision, elsewhere: bool) -> str:
    """Return what to type where no setting makes this model fit: the largest of the shipped ones that does, or more memory."""
    spec = decision.facts.spec
    for name in shipped.smaller(spec.parameters, spec.vision is not None):
        smaller = replace(decision.request, model=name, detail=ANY)
        try:
            made = _decide(smaller, _wanted(smaller), facts_of(smaller), elsewhere=elsewhere).plan
        except (DoesNotFitError, UsageError):  # an option of this run means nothing there
            continue
        if made.fits:
            return f"--model {name}   needs {memory.human_bytes(made.total_bytes)}"
    return "a device with more memory: no model that edgemllm knows fits here with these options"


class out_of_memory:
    """Turns the shapes in which memory runs out into one error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _means_out_of_memory(str(error))):
            first = str(error).splitlines()[0] if str(error) else "the host has no more"
            raise OutOfMemoryError(
                f"out of memory: {first}",
                "a smaller --kv-budget or --chunk, or --quant nf4; edgemllm plan shows the parts",
            ) from error


def _means_out_of_memory(text: str) -> bool:
    # The second and third are how Tegra says it: no OutOfMemoryError there.
    signs = ("out of memory", "NVML_SUCCESS == r INTERNAL ASSERT", "NvMapMemAlloc", "can't allocate memory")
    return any(sign in text for sign in signs)


def _vision_dtype(request: Request, facts: ModelFacts, device: str, dtype: str, here: bool) -> str | None:
    """Return the dtype of what is outside the language model; `here`: on this machine, whose flags decide, no stopwatch."""
    if facts.spec.vision is None:
        return None
    large = facts.spec.vision_parameters >= LARGE_TOWER and not facts.prequantised_with
    gains = request.dtype == "auto" and device == "cpu" and large and here and processor.multiplies_bfloat16()
    return "bfloat16" if gains else dtype


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
