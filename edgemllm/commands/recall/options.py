"""The options of `edgemllm recall` that no other command has: the streams, and what is asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgemllm.commands.options import RUN, listed, option
from edgemllm.errors import UsageError

FOOTAGE = ("static", "diverse")
PROTOCOLS = ("end", "rounds")
NEEDLES = ("slides", "text")
FORMS = ("date", "place", "number", "name", "city", "passkey")
AUTO = ("auto",)
"""Of a model that is to be looked at first."""


@dataclass(frozen=True)
class StreamOptions:
    """Which streams, and when questions come."""

    tokens: Annotated[str, option("--tokens", help="Length of a stream.", panel=RUN)] = "1600"
    streams: Annotated[int, option("--streams", help="Number of streams.", min=1, panel=RUN)] = 40
    facts: Annotated[int, option("--facts", help="Number of facts per stream; the last one is recent.", min=2, panel=RUN)] = 10
    needles: Annotated[
        str,
        option(
            "--needles",
            help="auto, slides, text (codes), mixed, or some of date, place, number, name, city, passkey.",
            panel=RUN,
        ),
    ] = "auto"
    haystack: Annotated[
        str | None,
        option("--haystack", help="A text file, real prose between the facts. [default: made-up sentences]", panel=RUN),
    ] = None
    between: Annotated[str, option("--between", help="static, diverse or both: what lies between the facts.", panel=RUN)] = (
        "both"
    )
    protocol: Annotated[str, option("--protocol", help="end, rounds or both: when questions come.", panel=RUN)] = "end"
    seed: Annotated[
        int,
        option("--seed", help="Seed of the first stream. Tune on other seeds than you report.", panel=RUN, min=0, max=2**62),
    ] = 1000

    focus: Annotated[
        bool, option("--focus", help="Tell policies that take a focus beforehand what will be asked of a stream.", panel=RUN)
    ] = False

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of footage or prose between the facts. Raises UsageError for a kind of a given haystack."""
        if self.haystack is None:
            return _either(self.between, FOOTAGE, "--between")
        if self.between != "both":
            raise UsageError(f"--between {self.between}: the haystack is what lies between", "omit --between or --haystack")
        return ("haystack",)

    def protocols(self) -> tuple[str, ...]:
        """Return when questions come."""
        return _either(self.protocol, PROTOCOLS, "--protocol")

    def needles_for(self, model: str) -> tuple[str, ...]:
        """Return what states the facts: slides, text, forms that alternate, or AUTO. Raises UsageError for an unknown one."""
        if self.needles == "auto":
            return ("slides",) if model == "demo" and self.haystack is None else AUTO
        if self.needles == "slides" and self.haystack is not None:
            raise UsageError("--haystack is prose, and slides are shown between footage", "--needles auto")
        names = FORMS if self.needles == "mixed" else tuple(dict.fromkeys(listed(self.needles, "--needles")))
        if set(names) <= set(FORMS) or (len(names) == 1 and names[0] in NEEDLES):
            return names
        raise UsageError(
            f"--needles {self.needles} is unknown", f"auto, {', '.join(NEEDLES)}, mixed, or some of {', '.join(FORMS)}: a,b,c"
        )


def _either(word: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    if word != "both" and word not in known:
        raise UsageError(f"{option} {word} is unknown", f"one of {', '.join(known)}, both")
    return known if word == "both" else (word,)
