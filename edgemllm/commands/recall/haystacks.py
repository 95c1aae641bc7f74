"""The streams of `edgemllm recall`: facts between footage or prose, as long as was asked, as tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemllm.commands.recall.forms import statements
from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.commands.recall.needles import hide
from edgemllm.commands.recall.prose import Prose
from edgemllm.commands.recall.run import Stream
from edgemllm.errors import UsageError
from edgemllm.models.families.base import ModelFamily


@dataclass(frozen=True)
class Haystacks:
    """Makes streams of `length` tokens, different for every seed."""

    family: ModelFamily
    prose: Prose
    length: int

    def stream(self, needles: Sequence[str], kind: str, seed: int, facts: int) -> Stream:
        """Return a stream with `facts` needles: slides, codes (text), or alternating forms. Raises UsageError."""
        if tuple(needles) == ("slides",):
            each = self.family.sizes(self.family.model.config).frame_tokens
            if not each:
                raise UsageError("this model takes no video, so it cannot be shown slides", "--needles text")
            return Stream(self.family, slide_haystack(seed, max(24, self.length // each), facts, kind == "diverse"))
        told = statements(needles, facts, np.random.default_rng([seed, facts]))
        prose = self.prose.sentences(seed, kind)
        return Stream(self.family, hide(told, prose, self.length, lambda words: len(self.family.tokenize(words)), seed))
