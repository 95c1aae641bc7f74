"""Count which facts of long streams the demo model still knows under several settings of a policy.

    python -m lab.measure.sweep inf-mllm inf-mllm/bias={0,0.003,0.01,0.03} inf-mllm/window=8/recent=0.5

A row for each policy, with its settings after it. Streams are those of `edgemllm recall`, with seeds below the ones it reports
on. All rows see the same streams and get the same bytes; differences are those from the first row.
"""

from __future__ import annotations

import argparse

from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.commands.recall.run import PROTOCOLS, Stream
from edgemllm.commands.recall.score import Score, paired
from edgemllm.errors import EdgeError
from edgemllm.models import loading
from edgemllm.session import Session
from lab.measure import pages
from lab.measure.policy import build

Scores = dict[tuple[str, bool], Score]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", metavar="policy/key=value")
    parser.add_argument("--kv-budget", type=int, default=160, help="tokens per layer of a policy that keeps no notes")
    parser.add_argument("--streams", type=int, default=10, help="of each kind of footage")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="end")
    options = parser.parse_args()
    try:
        built = {name: build(name) for name in options.policies}
    except EdgeError as error:
        parser.error(error.message)
    family = loading.load(loading.locate("demo"))
    scores: Scores = {(name, diverse): Score() for name in built for diverse in (False, True)}
    spec = family.spec
    total = options.kv_budget * spec.token_bytes(build("window"))
    for seed in range(options.streams):
        for diverse in (False, True):
            stream = Stream(family, slide_haystack(seed, options.frames, options.facts, diverse))
            for name, policy in built.items():
                budget = (total - spec.fixed_bytes(policy)) // spec.token_bytes(policy)
                session = Session(family, policy, budget if policy.bounded else None, options.chunk)
                scores[name, diverse].add(PROTOCOLS[options.protocol](session, stream), [0])
    rows = [row(name, options.policies[0], scores) for name in built]
    print(pages.table(["policy", "static", "diverse", "recent", "difference"], rows, left=["policy"]))


def row(name: str, first: str, scores: Scores) -> list[str]:
    """Give percentages of right answers on static and diverse footage, on recent facts, and the difference from `first`."""
    still, moving = scores[name, False], scores[name, True]
    found = [paired(scores[name, kind].old, scores[first, kind].old)["difference"] or 0.0 for kind in (False, True)]
    recent = ((still.recent.share or 0) + (moving.recent.share or 0)) / 2
    shares = [f"{100 * (share or 0):.0f}" for share in (still.old.share, moving.old.share, recent)]
    return [name, *shares, f"{50 * sum(found):+.1f}"]


if __name__ == "__main__":
    main()
