"""Vary a policy's settings one at a time and count which facts of long streams the demo model still knows.

    python -m lab.measure.sweep --policy inf-mllm bias=0,0.003,0.01,0.03 recent=0.125,0.25,0.5 "window=8 recent=0.5"

Values after a comma are a row each, settings between spaces one row together. Streams are those of `edgemllm recall`, with
seeds below the ones it reports on. All settings see the same streams and get the same bytes; the first row is the default.
"""

from __future__ import annotations

import argparse

from edgemllm import policies
from edgemllm.commands.recall.needles import slide_haystack
from edgemllm.commands.recall.run import PROTOCOLS, Stream
from edgemllm.commands.recall.score import Score, paired
from edgemllm.models import loading
from edgemllm.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="inf-mllm")
    parser.add_argument("--kv-budget", type=int, default=160, help="tokens a layer of a policy that keeps no notes")
    parser.add_argument("--streams", type=int, default=10, help="of each kind of footage")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="end")
    parser.add_argument("settings", nargs="*", metavar="key=value,value")
    options = parser.parse_args()
    family = loading.load(loading.locate("demo"))
    rows = [""]
    for setting in options.settings:
        key, equals, values = setting.partition("=")
        if not equals:
            parser.error(f"{setting!r} is no key=value")
        rows += [setting] if " " in setting else [f"{key}={value}" for value in values.split(",")]
    scores = {(row, diverse): Score() for row in rows for diverse in (False, True)}
    spec = family.spec
    total = options.kv_budget * spec.token_bytes(policies.build("window"))
    for seed in range(options.streams):
        for diverse in (False, True):
            stream = Stream(family, slide_haystack(seed, options.frames, options.facts, diverse))
            for row in rows:
                policy = policies.build(options.policy, row.split())
                budget = (total - spec.fixed_bytes(policy)) // spec.token_bytes(policy)
                session = Session(family, policy, budget if policy.bounded else None, options.chunk)
                answers = PROTOCOLS[options.protocol](session, stream)
                scores[row, diverse].add(answers, [0])
    print(f"| {options.policy} | static | diverse | recent | difference |\n|---|---:|---:|---:|---:|")
    for row in rows:
        still, moving = scores[row, False], scores[row, True]
        found = [paired(scores[row, kind].old, scores["", kind].old)["difference"] or 0.0 for kind in (False, True)]
        recent = ((still.recent.share or 0) + (moving.recent.share or 0)) / 2
        cells = [f"{100 * (share or 0):.0f}" for share in (still.old.share, moving.old.share, recent)]
        print(f"| {row or 'default'} | {' | '.join(cells)} | {50 * sum(found):+.1f} |", flush=True)


if __name__ == "__main__":
    main()
