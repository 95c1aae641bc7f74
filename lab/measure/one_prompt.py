"""One prompt of many pictures, compressed once after the question: how MEDA and its neighbours are published.

    python -m lab.measure.one_prompt --policy meda meda/as_released=true snapkv --rho 0.2

A prompt is a clip of the slide world and one question, asked of `full` as well. Bytes are those of every live tensor when the
answer is out, the policy's notes included, over those of the keys and values of the whole prompt.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field

from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.commands.recall.run import SHORT, Stream, branch
from edgemllm.commands.recall.score import Tally, paired
from edgemllm.errors import EdgeError
from edgemllm.media import slides
from edgemllm.models import loading
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.policies.base import CachePolicy
from edgemllm.session import Session
from lab.measure import pages
from lab.measure.policy import build

FULL = "full"
COLUMNS = ("policy", "bytes", "tokens kept, by layer", "mean", "numbers right", "against full", "refusals right")


@dataclass
class Found:
    """What one policy came to."""

    right: Tally = field(default_factory=Tally)
    refused: Tally = field(default_factory=Tally)
    bytes: list[float] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)
    """Share of the tokens that each layer kept."""

    def row(self, name: str, other: Found) -> tuple[str, ...]:
        """Give the cells of COLUMNS; `other` is the reference."""
        ratios = [statistics.fmean(layer) for layer in zip(*self.layers, strict=True)]
        change = paired(self.right, other.right)
        return (
            name,
            f"{statistics.fmean(self.bytes):.1%}, at most {max(self.bytes):.1%}",
            " ".join(f"{ratio:.2f}" for ratio in ratios),
            f"{statistics.fmean(ratios):.3f}",
            f"{sum(self.right.right)} of {sum(self.right.asked)}",
            f"{100 * (change['difference'] or 0):+.1f} ± {100 * (change['error'] or 0):.1f}",
            f"{sum(self.refused.right)} of {sum(self.refused.asked)}",
        )


def ask_all(stream: Stream, policy: CachePolicy, frames: int, result: Found, token_bytes: int) -> None:
    """Show the clip to a fresh session and ask everything about it, each question alone."""
    needles = stream.haystack.needles
    asked = [(needle.question, needle.answer) for needle in needles]
    asked += [(question, slides.NOT_SEEN) for question in stream.haystack.unseen]
    session = Session(stream.family, policy, 8 * frames if policy.bounded else None, frames)
    stream.begin(session, record=True)
    for start in range(0, frames, FRAMES_AT_ONCE):
        session.see(stream.haystack.items[start : start + FRAMES_AT_ONCE])
    marks: list[bool] = []
    for question, answer in asked:
        here = branch(session)
        marks.append(answer in "".join(here.ask(question, SHORT)))
        kv = here.kv()
        held = kv["bytes"] if policy.bounded else kv["seen_tokens"] * token_bytes  # `full` grows ahead of need
        result.bytes.append(held / (kv["seen_tokens"] * token_bytes))
        result.layers.append([length / kv["seen_tokens"] for length in kv["tokens_per_layer"]])
    result.right.add(marks[: len(needles)])
    result.refused.add(marks[len(needles) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="+", default=["meda", "meda/as_released=true", "pyramidkv", "snapkv", "look-m"])
    parser.add_argument("--rho", type=float, default=0.2)
    parser.add_argument("--prompts", type=int, default=20, help="clips; each is asked everything about it")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=2000)
    options = parser.parse_args()
    try:
        policies = {FULL: build(FULL), **{name: build(name, f"rho={options.rho}") for name in options.policy}}
    except EdgeError as error:
        parser.error(error.message)
    family = loading.load(loading.locate("demo"))
    token_bytes = family.spec.token_bytes(policies[FULL])
    found = {name: Found() for name in policies}
    for seed in range(options.seed, options.seed + options.prompts):
        stream = Stream(family, slide_haystack(seed, options.frames, options.facts, diverse=seed % 2 == 1))
        for name, policy in policies.items():
            ask_all(stream, policy, options.frames, found[name], token_bytes)
    rows = [result.row(name, found[FULL]) for name, result in found.items()]
    print(pages.table(COLUMNS, rows, left=["policy", "tokens kept, by layer"]))


if __name__ == "__main__":
    main()
