"""What fits: weights + vision + activations + KV cache + margin against free memory, in whole bytes, before loading.

The peaks are added up as if they came together, and prefill scratch is counted as if attention scores were
materialised: the plan may refuse what would just have fitted, but should not let through what would not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgemllm.device.memory import human_bytes
from edgemllm.errors import DoesNotFitError
from edgemllm.planning.case import Case
from edgemllm.planning.peaks import activation_bytes

LAUNCH_S = 0.001
"""About what a decoded token costs in kernel launches alone: where reading memory takes less, bandwidth is not the limit."""

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
    state_bytes: int
    """Of the cache: constant states of layers that no policy manages."""

    managed_layers: int
    """Layers that the policy decides for; the others slide, share or keep a state."""

    layers: int
    suggestions: tuple[str, ...] = ()
    """Changes of the command line, each of which alone would make it fit."""

    decode_tps_ceiling: float | None = None
    """Tokens a second if decoding did nothing but read memory: a ceiling, real speed is lower.

    None where the bandwidth is unknown, or so much higher than the model is large that it is not what limits."""

    host_peak_bytes: int | None = None
    """Most host memory that loading takes, where weights are converted on the way; None: no more than they take."""

    where: str = ""
    """The kind of memory, its source and the device, for messages."""

    @classmethod
    def of(cls, case: Case, tokens: int) -> Plan:
        """Add up one case with a cache of `tokens` per layer, without suggestions."""
        weights, vision, kv, margin = case.weights_bytes, case.vision_bytes, case.kv_bytes(tokens), case.profile.margin
        activation = activation_bytes(case.spec, case.quant, case.dtype, case.chunk, tokens, case.scratch)
        total = weights + vision + activation + kv + margin
        return cls(
            fits=total <= case.memory.free_bytes,
            weights_bytes=weights,
            vision_bytes=vision,
            activation_bytes=activation,
            kv_bytes=kv,
            margin_bytes=margin,
            total_bytes=total,
            free_bytes=case.memory.free_bytes,
            kv_budget_tokens=tokens,
            kv_bytes_per_token=case.token_bytes,
            state_bytes=case.shape.state_bytes,
            managed_layers=len(case.shape.managed),
            layers=len(case.shape.layers),
            decode_tps_ceiling=_decode_ceiling(case, kv),
            where=f"{case.memory.source}; {case.memory.kind} memory, {case.profile.title}",
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields of a plan in JSON."""
        values = asdict(self)
        more = [] if self.host_peak_bytes is None else ["host_peak_bytes"]
        more += ["state_bytes", "managed_layers"] if self.managed_layers < self.layers else []
        return {name: values[name] for name in (*JSON_FIELDS, *more)} | {"suggestions": list(self.suggestions)}

    def error(self) -> DoesNotFitError:
        """Return the error that says what is needed, what is free, and what to type."""
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


def _decode_ceiling(case: Case, kv_bytes: int) -> float | None:
    """Return the tokens per second at the device's memory bandwidth; None where it is unknown or not the limit."""
    if case.profile.bandwidth_gb_s is None:
        return None
    bandwidth = case.profile.bandwidth_gb_s * 1e9
    read = case.spec.decode_read_bytes(case.quant, case.dtype) + kv_bytes
    return bandwidth / read if read >= bandwidth * LAUNCH_S else None
