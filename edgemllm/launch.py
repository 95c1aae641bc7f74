"""From what the user asked for to an open session: profile, policy, plan, weights, in that order.

Nothing large is loaded before the plan says that it fits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgemllm import policies
from edgemllm.choices import DEVICES, DTYPES, ITEM_BYTES, QUANTISATIONS
from edgemllm.device import detect, memory
from edgemllm.errors import DoesNotFitError, OutOfMemoryError, UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.models import shipped
from edgemllm.models.spec import cache_spec
from edgemllm.planning import chunk_size
from edgemllm.planning.budget import parse_kv_budget
from edgemllm.planning.case import Case
from edgemllm.planning.plan import Plan
from edgemllm.planning.planner import plan

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.models.families.base import ModelFamily
    from edgemllm.models.loading import Checkpoint
    from edgemllm.policies.base import CachePolicy
    from edgemllm.session import Session

SMALL_MODEL = 200_000_000
"""Below this many quantisable parameters `--quant auto` leaves the weights alone: nothing to gain, quality to lose."""


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


@dataclass(frozen=True)
class Launch:
    """Everything decided, nothing loaded."""

    request: Request
    profile: DeviceProfile
    policy_name: str
    policy: CachePolicy
    checkpoint: Checkpoint
    quant: str
    """The weights' quantisation: asked for, chosen, or what the checkpoint was stored with."""

    dtype: str
    device: str
    chunk: int
    """Tokens of a prefill chunk; never more than the plan counts with."""

    budget: int | None
    """Tokens a layer; None: the cache grows."""

    plan: Plan
    memory: memory.Memory
    """What was free when it was planned."""

    def open(self, on_step: Callable[[Session], None] | None = None, family: ModelFamily | None = None) -> Session:
        """Load the weights, or take those of `family`, and begin an empty session.

        Raises DoesNotFitError before loading anything.
        """
        if not self.plan.fits:
            raise self.plan.error()
        from edgemllm.models.loading import load
        from edgemllm.session import Session

        if family is None:
            with out_of_memory():
                family = load(
                    self.checkpoint, self.quant, self.dtype, self.device, self.request.trust_remote_code, self.request.detail
                )
        session = Session(family, self.policy, self.budget, self.chunk, self.request.system)
        if on_step is not None:
            session.on_step = on_step
        return session

    def describe(self) -> dict[str, Any]:
        """Return the fields every run's JSON begins with."""
        return {
            "model": self.request.model,
            "profile": self.profile.name,
            "policy": self.policy_name,
            "quant": self.quant,
            "dtype": self.dtype,
            "device": self.device,
        }


def prepare(
    request: Request,
    input_tokens: Callable[[Any], int | None] = lambda config: None,
    plan_only: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Launch:
    """Decide everything and plan it. `input_tokens` gives the length of the input, where it can be known, from the config.

    `checkpoint`: that of the request, where it was already looked up.

    Raises UsageError, MissingError, and DoesNotFitError for a KV budget that the policy cannot work with.
    """
    launch = decide(request, input_tokens, plan_only, checkpoint)
    if launch.plan.fits or launch.plan.suggestions:
        return launch
    return replace(launch, plan=replace(launch.plan, suggestions=(_smaller_model(launch, plan_only),)))


def decide(
    request: Request,
    input_tokens: Callable[[Any], int | None] = lambda config: None,
    plan_only: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Launch:
    """Do as `prepare`, but without the search for a smaller model where no setting makes this one fit."""
    from edgemllm.models import loading
    from edgemllm.session import FRAMES_AT_ONCE

    _check(request)
    profile = detect.profile(request.profile)
    policy_name = request.policy or profile.cache.policy
    policy = policies.build(policy_name, request.settings)
    budget = parse_kv_budget(request.kv_budget)
    name = shipped.architecture(request.model) if plan_only else request.model
    checkpoint = checkpoint or loading.locate(name, request.offline, request.trust_remote_code, _say)
    sizes = checkpoint.family.sizes(checkpoint.config, request.detail)

    device, dtype, free = _machine(request, profile, plan_only and request.profile != "auto")
    spec = checkpoint.spec.with_patches(sizes.patches)
    case = Case(
        profile=profile,
        memory=free,
        spec=spec,
        shape=cache_spec(checkpoint.config.get_text_config(), ITEM_BYTES[dtype], checkpoint.family.axes),
        policy=policy,
        policy_name=policy_name,
        quant=_quant(request, checkpoint, profile),
        dtype=dtype,
        chunk=request.chunk or profile.chunk,
        budget=budget,
        input_tokens=input_tokens(checkpoint.config),
        frames=max(1, FRAMES_AT_ONCE // (spec.vision.frames if spec.vision else 1)),
    )
    made = plan(case)
    slots = made.kv_budget_tokens if case.limited else None
    quant, chunk = checkpoint.stored_as or case.quant, _chunk(request, case, slots, sizes.indivisible)
    return Launch(request, profile, policy_name, policy, checkpoint, quant, dtype, device, chunk, slots, made, free)


def _machine(request: Request, profile: DeviceProfile, elsewhere: bool) -> tuple[str, str, memory.Memory]:
    """Return device, dtype and free memory: a plan for another machine takes that machine's word, a run takes what is here."""
    device = profile.backend if elsewhere and request.device == "auto" else _device(request.device, profile)
    free = profile.idle_memory() if elsewhere else memory.probe(device)
    return device, _dtype(request.dtype, profile, device), free


def _check(request: Request) -> None:
    """Raise UsageError for a word that no option knows."""
    for name, value, choices in (
        ("quant", request.quant, QUANTISATIONS), ("dtype", request.dtype, DTYPES), ("device", request.device, DEVICES),
    ):  # fmt: skip
        if value not in ("auto", *choices):
            raise UsageError(f"--{name} {value} is unknown", f"one of auto, {', '.join(choices)}")
    if request.chunk is not None and request.chunk < 1:
        raise UsageError(f"--chunk {request.chunk} feeds nothing", "a number from 1 upwards")


def _quant(request: Request, checkpoint: Checkpoint, profile: DeviceProfile) -> str:
    """Return how to quantise the weights; none for a checkpoint that was quantised beforehand."""
    if checkpoint.prequantised_with:
        if request.quant not in ("auto", "none"):
            raise UsageError(
                f"--quant {request.quant}: {request.model} is already quantised with {checkpoint.prequantised_with}",
                "omit --quant",
            )
        return "none"
    if request.quant != "auto":
        return request.quant
    return profile.weights if checkpoint.spec.linear_parameters >= SMALL_MODEL else "none"


def _chunk(request: Request, case: Case, slots: int | None, indivisible: int) -> int:
    """Return the chunk asked for, or the profile's as far as a budget of `slots` tokens a layer takes it."""
    if slots is None:
        return case.chunk
    if request.chunk is None:
        return chunk_size.default(case.chunk, slots, case.policy, indivisible)
    chunk_size.check(request.chunk, slots, case.policy)
    return request.chunk


def _smaller_model(launch: Launch, plan_only: bool) -> str:
    """Return what to type where no setting makes this model fit: the largest of the shipped ones that does, or more memory."""
    spec = launch.checkpoint.spec
    for name in shipped.smaller(spec.parameters, spec.vision is not None):
        smaller = replace(launch.request, model=shipped.architecture(name), detail=ANY)
        try:
            made = decide(smaller, plan_only=plan_only).plan
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


def _device(wanted: str, profile: DeviceProfile) -> str:
    if wanted == "cpu" or (wanted == "auto" and profile.backend == "cpu"):
        return "cpu"
    import torch

    kind = profile.backend if wanted == "auto" else wanted
    there = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if there:
        return kind
    if wanted == "auto":
        return "cpu"
    raise UsageError(f"--device {wanted}: this machine's torch has no {wanted}", "--device cpu, or --device auto")


def _dtype(wanted: str, profile: DeviceProfile, device: str) -> str:
    if wanted != "auto":
        return wanted
    # Most processors compute half precision more slowly than single.
    if device == "cpu":
        return "float32"
    if device == "cuda" and profile.dtype == "bfloat16":
        import torch

        # Before Ampere there is no bfloat16; a plan for another machine believes its profile.
        if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
            return "float16"
    return profile.dtype


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
