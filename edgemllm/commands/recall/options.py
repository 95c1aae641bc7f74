"""The options of `edgemllm recall` that no other command has: the streams, and what is asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgemllm.commands.options import RUN, option
from edgemllm.errors import UsageError

FOOTAGE = ("static", "diverse")
PROTOCOLS = ("end", "rounds")
NEEDLES = ("slides", "text")


@dataclass(frozen=True)
class StreamOptions:
    """Which streams, and when questions come."""

    tokens: Annotated[str, option("--tokens", help="Length of a stream.", panel=RUN)] = "1600"
    streams: Annotated[int, option("--streams", help="Number of streams.", min=1, panel=RUN)] = 40
    facts: Annotated[int, option("--facts", help="Number of facts per stream; the last one is recent.", min=2, panel=RUN)] = 10
    needles: Annotated[str, option("--needles", help="slides, text or auto: slides for the demo model.", panel=RUN)] = "auto"
    between: Annotated[str, option("--between", help="static, diverse or both: what lies between the facts.", panel=RUN)] = (
        "both"
    )
    protocol: Annotated[str, option("--protocol", help="end, rounds or both: when questions come.", panel=RUN)] = "end"
    seed: Annotated[
        int,
        option("--seed", help="Seed of the first stream. Tune on other seeds than you report.", panel=RUN, min=0, max=2**62),
    ] = 1000

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of footage or prose between the facts."""
        return _either(self.between, FOOTAGE, "--between")

    def protocols(self) -> tuple[str, ...]:
        """Return when questions come."""
        return _either(self.protocol, PROTOCOLS, "--protocol")

    def needles_for(self, model: str) -> str:
        """Return what states the facts. Raises UsageError for an unknown kind."""
        needles = ("slides" if model == "demo" else "text") if self.needles == "auto" else self.needles
        if needles not in NEEDLES:
            raise UsageError(f"--needles {needles} is unknown", "slides, text or auto")
        return needles


def _either(word: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    if word != "both" and word not in known:
        raise UsageError(f"{option} {word} is unknown", f"one of {', '.join(known)}, both")
    return known if word == "both" else (word,)
