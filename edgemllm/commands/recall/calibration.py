"""Which forms of needles a model answers while it still holds everything: only of those can a policy lose something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgemllm.commands.recall.options import FORMS

ENOUGH = 0.8
"""The share of right answers with the full cache from which forms are used."""
STREAMS = 3
FIRST_SEED = 2**63
"""Above what --seed takes: no stream that is reported was chosen by."""

Ask = Callable[[Sequence[str], int], Sequence[tuple[str, bool]]]
"""Asks about a stream with needles of some forms, of a seed: each needle's form, and whether it was answered correctly.
Nothing where a signal came."""


@dataclass(frozen=True)
class Calibration:
    """Forms that alternate in a stream, and how `full` answered."""

    forms: tuple[str, ...]
    right: int
    asked: int

    @property
    def share(self) -> float:
        """Return the share of right answers."""
        return self.right / self.asked if self.asked else 0.0

    def line(self, tokens: int) -> str:
        """Return what the user should know of it."""
        found = f"full answers {self.right} of {self.asked} ({self.share:.0%}) at {tokens:,} tokens"
        if self.share < ENOUGH:
            return f"no form of needles reaches {ENOUGH:.0%} with this model; the best is {', '.join(self.forms)}: {found}"
        return f"needles: {', '.join(self.forms)}; {found}, on other seeds"


def calibrate(ask: Ask) -> Calibration:
    """Return the forms of which `full` answers ENOUGH, dropping those it does not know; where there are none, the best."""
    forms: tuple[str, ...] = FORMS
    best = Calibration(forms, 0, 0)
    while forms:
        marks = [mark for number in range(STREAMS) for mark in ask(forms, FIRST_SEED + number)]
        found = Calibration(forms, sum(right for _, right in marks), len(marks))
        best = found if found.share >= best.share else best
        if found.share >= ENOUGH or not marks:
            break
        shares = {form: _share([right for other, right in marks if other == form]) for form in forms}
        known = tuple(form for form in forms if shares[form] >= ENOUGH)
        alone = (max(forms, key=lambda form: shares[form]),) if len(forms) > 1 else ()
        forms = known or alone
    return best


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0
