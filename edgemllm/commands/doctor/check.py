"""What was found about one thing, how good that is, and what to type where it is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    """ok; note: it works, and could work better; fails: something that edgemllm does will not work."""

    found: str
    """What there is, with numbers."""

    cures: tuple[str, ...] = ()
    """What to type."""

    def as_json(self) -> dict[str, Any]:
        """Return it as an entry of `checks`; what to type is called `try`, as in errors."""
        fields = asdict(self)
        fields["try"] = list(fields.pop("cures"))
        return fields
