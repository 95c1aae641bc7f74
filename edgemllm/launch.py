"""From what the user asked for to an open session: profile, policy, plan, weights, in that order.

Nothing large is loaded before the plan says that it fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemllm.errors import out_of_memory
from edgemllm.planning.decision import Decision, decide
from edgemllm.planning.lookup import checkpoint_of, terms_of

if TYPE_CHECKING:
    from edgemllm.models.families.base import ModelFamily
    from edgemllm.models.loading import Checkpoint
    from edgemllm.planning.request import Request
    from edgemllm.session import Session


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
    terms = terms_of(request)
    checkpoint = checkpoint or checkpoint_of(request)
    made = decide(request, terms, checkpoint.facts(request.detail), input_tokens(checkpoint.config))
    return Launch(**vars(made), checkpoint=checkpoint)
