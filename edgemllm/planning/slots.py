"""How many tokens a layer the KV cache gets: what was asked for, or what memory leaves."""

from __future__ import annotations

from dataclasses import dataclass

from edgemllm.device.memory import Memory, human_bytes
from edgemllm.device.profiles import DeviceProfile
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.models.spec import ModelSpec
from edgemllm.planning.budget import KVBudget
from edgemllm.planning.peaks import Scratch, activation_terms, vision_bytes

AUTO_TOKENS = 16_384
"""`auto` stops here: beyond it a policy gains little and every decoded token reads the whole cache."""


@dataclass(frozen=True)
class Case:
    """Everything that the arithmetic depends on; suggestions are tried by changing a field."""

    profile: DeviceProfile
    memory: Memory
    spec: ModelSpec
    quant: str
    dtype: str
    chunk: int
    budget: KVBudget
    kv_bytes_per_token: int
    kv_fixed_bytes: int
    minimum_tokens: int
    input_tokens: int | None
    policy_name: str
    unbounded: bool
    renumbers: bool
    scratch: Scratch
    frames: int
    bounded_kv_bytes_per_token: int | None


def tokens_per_layer(case: Case) -> int:
    """Tokens a layer; a DoesNotFitError where the policy cannot work with so few, or may not drop what comes."""
    budget, known = case.budget, case.input_tokens
    if case.unbounded and budget.kind == "auto":
        return known if known is not None else max(_tokens_left(case), case.minimum_tokens)
    if budget.kind == "auto":
        return max(_auto_tokens(case), case.minimum_tokens)
    if budget.kind == "share":
        if known is None:
            raise UsageError(
                f"--kv-budget {budget} is a share of an input whose length is not known",
                "give tokens (--kv-budget 2048) or bytes (--kv-budget 512MiB)",
            )
        tokens = known * budget.amount // 1_000_000
    elif budget.kind == "bytes":
        tokens = max(0, budget.amount - case.kv_fixed_bytes) // max(1, case.kv_bytes_per_token)
    else:
        tokens = budget.amount
    if tokens < max(1, case.minimum_tokens):
        raise _too_small(case, tokens)
    if case.unbounded and known is not None and known > tokens:
        raise DoesNotFitError(
            f"{case.policy_name} never evicts: the input has {known} tokens, --kv-budget {budget} holds {tokens}",
            f"--kv-budget {known}, or a policy that evicts: --policy inf-mllm --kv-budget {budget}",
        )
    return tokens


def _too_small(case: Case, tokens: int) -> DoesNotFitError:
    least = max(1, case.minimum_tokens)
    size = human_bytes(case.kv_fixed_bytes + least * case.kv_bytes_per_token)
    return DoesNotFitError(
        f"--kv-budget {case.budget} holds {tokens} tokens a layer; {case.policy_name} needs at least {least}",
        f"--kv-budget {least} ({size}), or another policy: edgemllm policies",
    )


def _tokens_left(case: Case) -> int:
    """Tokens a layer for which memory is left; each takes cache and prefill scratch."""
    fixed, per_token = activation_terms(case.spec, case.quant, case.dtype, case.chunk, case.scratch)
    taken = fixed + case.kv_fixed_bytes + case.profile.margin
    taken += case.spec.weights_bytes(case.quant, case.dtype)
    taken += vision_bytes(case.spec.vision, case.spec.hidden, case.dtype, case.frames)
    return max(0, case.memory.free_bytes - taken) // (case.kv_bytes_per_token + per_token)


def _auto_tokens(case: Case) -> int:
    tokens = min(_tokens_left(case), AUTO_TOKENS)
    cap = case.profile.cache.memory
    if cap is not None:
        tokens = min(tokens, max(0, cap - case.kv_fixed_bytes) // max(1, case.kv_bytes_per_token))
    if case.renumbers:  # positions inside the cache must stay among those that the model was trained on
        tokens = min(tokens, case.spec.max_position_embeddings)
    return tokens if tokens <= 64 else tokens // 64 * 64
