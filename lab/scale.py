"""What a thousand videos take on every device, as arithmetic: the least time in which memory can be read, not a measurement.

    python -m lab.scale
    python -m lab.scale --model random:qwen2.5-vl-7b --seconds 600

Weights and cache are read once for each chunk of prefill and once for each token of the answer. Computing, the vision tower and
decoding the video come on top, so that real devices take longer, in prefill several times as long.
"""

from __future__ import annotations

import argparse
import math

from edgemllm.device import profiles
from edgemllm.errors import DoesNotFitError
from edgemllm.media.detail import Detail
from edgemllm.planning.decision import Decision, plan_only
from edgemllm.planning.request import Request


def least_seconds(made: Decision, tokens: int, answer: int) -> float:
    """Return the seconds in which memory is read for a video of `tokens` and an answer of `answer`."""
    assert made.profile.bandwidth_gb_s is not None
    passes = math.ceil(tokens / made.chunk) + answer
    return passes * (made.plan.weights_bytes + made.plan.kv_bytes) / (made.profile.bandwidth_gb_s * 1e9)


def main() -> None:
    """Print a row for each profile that has a bandwidth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen2.5-vl-3b")
    parser.add_argument("--kv-budget", default="2048")
    parser.add_argument("--seconds", type=int, default=60, help="of a video, at one frame a second")
    parser.add_argument("--tokens-per-frame", type=int, default=64)
    parser.add_argument("--answer", type=int, default=32, help="tokens of the answer")
    options = parser.parse_args()
    tokens = options.seconds * options.tokens_per_frame
    print("| profile | weights | GiB in all | workers per device | least s per video | at most videos per hour |")
    print("|---|---|---:|---:|---:|---:|")
    for name in profiles.names():
        detail = Detail(tokens_per_frame=options.tokens_per_frame)
        request = Request(model=options.model, profile=name, kv_budget=options.kv_budget, detail=detail)
        try:
            made = plan_only(request)
        except DoesNotFitError:
            continue
        plan = made.plan
        if made.profile.bandwidth_gb_s is None or not plan.fits:
            print(f"| {name} | {made.quant} | {plan.total_bytes / 2**30:.1f} | {'-' if plan.fits else 'does not fit'} | | |")
            continue
        seconds, workers = least_seconds(made, tokens, options.answer), max(1, plan.free_bytes // plan.total_bytes)
        print(f"| {name} | {made.quant} | {plan.total_bytes / 2**30:.1f} | {workers} | {seconds:.2f} | {3600 / seconds:,.0f} |")


if __name__ == "__main__":
    main()
