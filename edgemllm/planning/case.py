"""What is planned: a model, a policy and their settings on a device; and how many tokens per layer they leave room for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgemllm.cache.focus import ROWS
from edgemllm.cache.scratch import Scratch
from edgemllm.cache.size import CacheSpec
from edgemllm.choices import DEFAULT_POLICY
from edgemllm.device.memory import Memory, human_bytes
from edgemllm.device.profiles import DeviceProfile
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.models.spec import ModelSpec
from edgemllm.planning.budget import KVBudget
from edgemllm.planning.peaks import activation_terms, vision_bytes

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy

AUTO_TOKENS = 16_384
"""`auto` stops here: beyond it a policy gains little and every decoded token reads the whole cache."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that the arithmetic depends on; a suggestion is a case with a field changed."""

    profile: DeviceProfile
    memory: Memory
    """What is free there."""

    spec: ModelSpec
    shape: CacheSpec
    policy: CachePolicy
    policy_name: str
    quant: str
    dtype: str
    chunk: int
    """Tokens that prefill takes at once, at most."""

    budget: KVBudget
    input_tokens: int | None = None
    """The length of the input, where it is known."""

    vision_dtype: str | None = None
    """Of everything outside the language model; None: `dtype`."""

    frames: int = 1
    """Frames that are encoded at once."""

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of all weights."""
        return self.spec.weights_bytes(self.quant, self.dtype, self.vision_dtype)

    @property
    def vision_bytes(self) -> int:
        """Return the peak of encoding `frames` frames."""
        return vision_bytes(self.spec.vision, self.spec.hidden, self.vision_dtype or self.dtype, self.frames)

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a cached token over all layers."""
        return self.shape.token_bytes(self.policy)

    def fixed_bytes(self, tokens: int | None = None) -> int:
        """Return the bytes of a cache of `tokens` per layer (None: many) that do not grow with it."""
        return self.shape.fixed_bytes(self.policy, self.chunk, tokens)

    @property
    def scratch(self) -> Scratch:
        """What the policy needs for a moment, besides its cache."""
        scratch = self.policy.scratch
        return replace(scratch, window=max(scratch.window, ROWS)) if self.shape.focus else scratch

    @property
    def limited(self) -> bool:
        """Return whether the cache is held to a budget: always, but for a policy that never evicts with `auto`."""
        return self.policy.bounded or self.budget.kind != "auto"

    @property
    def least_tokens(self) -> int:
        """Return the smallest budget, in tokens per layer, with which the policy can take a token in."""
        return self.policy.minimum() + 1

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of the cache at `tokens` per layer."""
        return self.fixed_bytes(tokens) + tokens * self.token_bytes

    def tokens(self) -> int:
        """Return the tokens per layer: what was asked for, or what memory leaves.

        Raises DoesNotFitError where the policy cannot work with so few, or may not drop what comes; UsageError for a share
        of an input of unknown length.
        """
        if self.budget.kind == "auto":
            return max(self._automatic(), self.least_tokens) if self.policy.bounded else self._unbounded()
        tokens = self._asked()
        if tokens < (least := self.least_tokens):
            raise DoesNotFitError(
                f"--kv-budget {self.budget} holds {tokens} tokens per layer; {self.policy_name} needs at least {least}",
                f"--kv-budget {least} ({human_bytes(self.kv_bytes(least))}), or another policy: edgemllm policies",
            )
        known = self.input_tokens
        if not self.policy.bounded and known is not None and known > tokens:
            raise DoesNotFitError(
                f"{self.policy_name} never evicts: the input has {known} tokens, --kv-budget {self.budget} holds {tokens}",
                f"--kv-budget {known}, or a policy that evicts: --policy {DEFAULT_POLICY} --kv-budget {self.budget}",
            )
        return tokens

    def _asked(self) -> int:
        if self.budget.kind == "tokens":
            return self.budget.amount
        if self.budget.kind == "bytes":
            return self._held_by(self.budget.amount)
        if self.input_tokens is None:
            raise UsageError(
                f"--kv-budget {self.budget} is a share of an input whose length is not known",
                "give tokens (--kv-budget 2048) or bytes (--kv-budget 512MiB)",
            )
        return self.input_tokens * self.budget.amount // 1_000_000

    def _unbounded(self) -> int:
        return self.input_tokens if self.input_tokens is not None else max(self._left(), self.least_tokens)

    def _automatic(self) -> int:
        tokens = min(self._left(), AUTO_TOKENS)
        if self.profile.cache.memory is not None:
            tokens = min(tokens, self._held_by(self.profile.cache.memory))
        if self.policy.positions == "cache":  # renumbered positions must stay among those that the model was trained on
            tokens = min(tokens, self.spec.max_position_embeddings)
        return tokens if tokens <= 64 else tokens // 64 * 64

    def _held_by(self, size: int) -> int:
        """Return the tokens per layer in a cache of `size` bytes."""
        most = max(0, size - self.fixed_bytes(0)) // self.token_bytes
        return max(0, size - self.fixed_bytes(most)) // self.token_bytes

    def _left(self) -> int:
        """Return the tokens per layer for which memory is left; each takes cache and prefill scratch."""
        fixed, per_token = activation_terms(self.spec, self.quant, self.dtype, self.chunk, self.scratch)
        taken = fixed + self.fixed_bytes() + self.profile.margin + self.weights_bytes + self.vision_bytes
        return max(0, self.memory.free_bytes - taken) // (self.token_bytes + per_token)
