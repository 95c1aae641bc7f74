"""`edgemllm recall`: what each policy still knows of a long stream, at equal bytes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from edgemllm.cli import options
from edgemllm.errors import UsageError
from edgemllm.units import parse_count

if TYPE_CHECKING:
    from edgemllm.launch import Launch

FOOTAGE = ("static", "diverse")
NEEDLES = ("slides", "text")

Length = Annotated[str, options.option("--tokens", help="Length of a stream.", panel=options.RUN)]
Streams = Annotated[int, options.option("--streams", help="How many streams.", min=1, panel=options.RUN)]
Facts = Annotated[int, options.option("--facts", help="Facts of a stream; the last one is recent.", min=2, panel=options.RUN)]
Kind = Annotated[
    str,
    options.option("--needles", help="slides, text or auto: slides for the demo model.", panel=options.RUN),
]
Between = Annotated[
    str, options.option("--between", help="static, diverse or both: what lies between the facts.", panel=options.RUN)
]
Protocol = Annotated[str, options.option("--protocol", help="end, rounds or both: when questions come.", panel=options.RUN)]
StreamSeed = Annotated[
    int,
    options.option("--seed", help="Of the first stream. Tune on others than you report.", panel=options.RUN, min=0, max=2**62),
]
Against = Annotated[
    str | None,
    options.option("--against", help="The policy of the paired differences. [default: the first]", panel=options.RUN),
]


def recall(
    tokens: Length = "1600",
    streams: Streams = 40,
    facts: Facts = 10,
    needles: Kind = "auto",
    between: Between = "both",
    protocol: Protocol = "end",
    seed: StreamSeed = 1000,
    against: Against = None,
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policies = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "10%",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    plot: options.Plot = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.Progress = "auto",
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
) -> None:
    """Count which facts of long streams each policy still knows.

    Facts lie at known distances between footage or prose; all policies see the same streams with the same KV bytes. The
    policies oracle (told what will be asked) and random show what is possible and what is luck. --kv-budget takes a
    list, 5%,10%,15%. The policy full keeps everything, without a budget: the reference that tells what the model cannot
    do from what a policy lost.
    """
    from edgemllm.commands import figures
    from edgemllm.screen import Display

    display = Display("none" if quiet else progress)
    length = parse_count(tokens, "--tokens")
    kinds, protocols = _either(between, FOOTAGE, "--between"), _either(protocol, ("end", "rounds"), "--protocol")
    needles = ("slides" if model == "demo" else "text") if needles == "auto" else needles
    if needles not in NEEDLES:
        raise UsageError(f"--needles {needles} is unknown", "slides, text or auto")
    if plot is not None:
        figures.check(plot, "--plot")
    from edgemllm.commands.lineup import line_up
    from edgemllm.device import profiles
    from edgemllm.launch import Request

    names = options.listed(policy or profiles.load(profile).cache.policy, "--policy")
    if against is not None and against not in names:
        raise UsageError(f"--against {against} is not among the policies", f"one of {', '.join(names)}")
    request = Request(model, profile, None, set, "", quant, dtype, device, chunk, offline, trust_remote_code)
    launches: list[Launch] = []
    for budget in options.listed(kv_budget, "--kv-budget"):
        launches += [
            dataclasses.replace(launch, request=dataclasses.replace(launch.request, kv_budget=budget))
            for launch in line_up(dataclasses.replace(request, kv_budget=budget), names, length, reference=True)
            if launch.budget is not None or launch.policy_name not in {other.policy_name for other in launches}
        ]
    lacking = next((launch.plan for launch in launches if not launch.plan.fits), None)
    if lacking is not None:
        raise lacking.error()
    from edgemllm.commands.events import Events
    from edgemllm.commands.recall.command import Recall

    events = Events("recall", json, jsonl)
    run = Recall(display, launches, kinds, protocols, needles, length, facts, streams, seed, against or names[0], events)
    run.go()
    events.close(run.code, {**run.head(), "runs": run.runs()})
    if events.text:
        from edgemllm.commands.recall.report import table

        print(table(run.runs()), flush=True)
    if plot is not None:
        from edgemllm.commands.recall.report import plot as draw

        draw(run.runs(), f"{model}, {length} tokens, {streams} streams", plot)
    if run.code:
        raise typer.Exit(run.code)


def _either(word: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    if word != "both" and word not in known:
        raise UsageError(f"{option} {word} is unknown", f"one of {', '.join(known)}, both")
    return known if word == "both" else (word,)
