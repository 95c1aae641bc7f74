"""From what the user asked for to an open session: profile, policy, plan, weights, in that order.

Nothing large is loaded before the plan says that it fits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgemllm.device import memory, profiles
from edgemllm.errors import DoesNotFitError, OutOfMemoryError, UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.planning.plan import Plan, parse_kv_budget, plan

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.models.families.base import ModelFamily
    from edgemllm.models.loading import Checkpoint
    from edgemllm.session import Session

QUANTISATIONS = ("auto", "none", "nf4", "int8")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULT_POLICY = "inf-mllm"
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


@dataclass
class Launch:
    """Everything decided, nothing loaded."""

    request: Request
    profile: DeviceProfile
    policy_name: str
    policy: Any
    checkpoint: Checkpoint
    quant: str
    dtype: str
    device: str
    chunk: int
    budget: int | None
    plan: Plan
    memory: memory.Memory
    notes: list[str] = field(default_factory=list)

    def open(self, on_step: Callable[[Session], None] | None = None, family: ModelFamily | None = None) -> Session:
        """Load the weights, or take those of `family`, and begin an empty session.

        Raises DoesNotFitError before loading anything.
        """
        if not self.plan.fits:
            raise self.plan.error()
        from edgemllm.models.loading import load, quantisation_of
        from edgemllm.session import Session

        if family is None:
            with out_of_memory():
                family = load(
                    self.checkpoint, self.quant, self.dtype, self.device, self.request.trust_remote_code, self.request.detail
                )
        self.quant = quantisation_of(family.model)
        session = Session(family, self.policy, self.budget, self.chunk, self.request.system)
        if on_step is not None:
            session.on_step = on_step
        return session

    def describe(self) -> dict[str, Any]:
        """The fields every run's JSON begins with."""
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
    advise: bool = True,
) -> Launch:
    """Decide everything and plan it. `input_tokens` gives the length of the input, where it can be known, from the config.

    `checkpoint`: that of the request, where it was already looked up. `advise`: name a smaller model where no setting helps.

    Raises UsageError, MissingError, and DoesNotFitError for a KV budget that the policy cannot work with.
    """
    from edgemllm import policies
    from edgemllm.models import loading, shipped
    from edgemllm.models.spec import cache_spec
    from edgemllm.session import FRAMES_AT_ONCE

    for name, value, known in (
        ("quant", request.quant, QUANTISATIONS), ("dtype", request.dtype, DTYPES), ("device", request.device, DEVICES),
    ):  # fmt: skip
        if value not in known:
            raise UsageError(f"--{name} {value} is unknown", f"one of {', '.join(known)}")
    if request.chunk is not None and request.chunk < 1:
        raise UsageError(f"--chunk {request.chunk} feeds nothing", "a number from 1 upwards")
    profile = profiles.load(request.profile)
    policy_name = request.policy or profile.cache.policy
    policy = policies.build(policy_name, request.settings)
    budget = parse_kv_budget(request.kv_budget)
    name = shipped.architecture(request.model) if plan_only else request.model
    checkpoint = checkpoint or loading.locate(name, request.offline, request.trust_remote_code, _say)
    family = checkpoint.family
    sizes = family.sizes(checkpoint.config, request.detail)

    # A plan for another machine takes that machine's word; a run takes what is here.
    elsewhere = plan_only and request.profile != "auto"
    device = profile.backend if elsewhere and request.device == "auto" else _device(request.device, profile)
    dtype = _dtype(request.dtype, profile, device)
    spec = checkpoint.spec.with_patches(sizes.patches)
    quant = request.quant
    if checkpoint.prequantised_with:
        if quant not in ("auto", "none"):
            raise UsageError(
                f"--quant {quant}: {request.model} is already quantised with {checkpoint.prequantised_with}",
                "leave --quant out",
            )
        quant = "none"
    elif quant == "auto":
        quant = profile.weights if spec.linear_parameters >= SMALL_MODEL else "none"
    shape = cache_spec(checkpoint.config.get_text_config(), _itemsize(dtype), family.axes)
    chunk = request.chunk or profile.chunk
    here = profile.idle_memory() if elsewhere else memory.probe(device)
    planned = plan(
        profile, here, spec, quant, dtype, chunk, budget,
        kv_bytes_per_token=shape.token_bytes(policy),
        kv_fixed_bytes=shape.fixed_bytes(policy, chunk),
        minimum_tokens=policy.minimum() + 1,
        input_tokens=input_tokens(checkpoint.config),
        policy_name=policy_name,
        bounded=policy.bounded,
        renumbers=policy.positions == "cache",
        scratch=policy.scratch,
        frames=max(1, FRAMES_AT_ONCE // (spec.vision.frames if spec.vision else 1)),
        bounded_kv_bytes_per_token=shape.token_bytes(policies.build(DEFAULT_POLICY)),
    )  # fmt: skip
    slots: int | None = planned.kv_budget_tokens
    if not policy.bounded and budget.kind == "auto":
        slots = None
    if slots is not None:
        room = slots - policy.minimum()
        if request.chunk is not None and request.chunk > room and policy.bounded:
            raise DoesNotFitError(
                f"chunks of {request.chunk} tokens leave too little of a KV budget of {slots} tokens a layer",
                f"--chunk {room} or less, or a larger --kv-budget",
            )
        # A chunk sees between budget - chunk and budget tokens, so by default it takes a quarter at most.
        chunk = request.chunk or max(1, min(max(min(chunk, slots // 4), sizes.indivisible), room))
    if not planned.fits and not planned.suggestions and advise:
        planned = replace(planned, suggestions=(_smaller_model(request, spec.parameters, spec.vision is not None, plan_only),))
    return Launch(request, profile, policy_name, policy, checkpoint, quant, dtype, device, chunk, slots, planned, here)


def _smaller_model(request: Request, parameters: int, vision: bool, plan_only: bool) -> str:
    """What to type where no setting makes this model fit: the largest of the shipped ones that does, or more memory."""
    from edgemllm.models import shipped

    for name in shipped.smaller(parameters, vision):
        smaller = replace(request, model=shipped.architecture(name), detail=ANY)
        try:
            made = prepare(smaller, plan_only=plan_only, advise=False).plan
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


def _itemsize(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
