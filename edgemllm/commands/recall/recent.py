"""The control `recent-frames`: a stock model that is shown the newest frames with each question, and nothing else.

What an archive or a policy remembers has to be better than this (SimpleStream, https://arxiv.org/abs/2604.02317).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from edgemllm.media.frame import Frame
from edgemllm.planning.estimate import question_tokens
from edgemllm.session import Session

NAME = "recent-frames"


@dataclass
class RecentFrames(Session):
    """Forgets everything at each question but the frames that fit into the budget beside it, and shows them anew."""

    newest: list[Frame] = field(default_factory=list)
    """As many frames as the budget could hold at most."""

    def see(self, frames: Sequence[Frame], interval: float | None = None) -> None:
        self.newest = [*self.newest, *frames][-self._fit(0) :]
        super().see(frames, interval)

    def put(self, question: str, beginning: str = "") -> Iterator[Tensor]:
        seen, meter = self.cache.seen, self.meter
        fresh = self.newest[-self._fit(question_tokens(question)) :]
        self.clear()
        for start in range(0, len(fresh), 8):
            super().see(fresh[start : start + 8], 1.0)
        for layer in self.cache.managed:  # distances are counted in the whole stream
            layer.counts.seen += seen
        self.meter = meter
        yield from super().put(question, beginning)

    def _fit(self, beside: int) -> int:
        tokens = self.family.sizes(self.family.model.config, self.family.detail).frame_tokens
        return max(1, ((self.budget or 0) - beside) // tokens)
