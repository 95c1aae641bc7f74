"""`edgemllm recall`: what each policy still knows of a long stream, at equal bytes."""

from __future__ import annotations

import dataclasses
import json as json_module
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemllm.cli import options
from edgemllm.cli.interrupts import Interrupts
from edgemllm.errors import UsageError
from edgemllm.inputs.count import parse_count

if TYPE_CHECKING:
    from edgemllm.display.line import Display
    from edgemllm.launch import Launch
    from edgemllm.runs.recall import Stream
    from edgemllm.runs.recall_score import Score

SCHEMA = "edgemllm/1"
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
    int, options.option("--seed", help="Of the first stream. Tune on others than you report.", panel=options.RUN)
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
    list, 5%,10%,15%.
    """
    from edgemllm.cli.main import quiet_libraries
    from edgemllm.display.line import Display
    from edgemllm.display.plot import check as check_plot

    display = Display("none" if quiet else progress)
    length = parse_count(tokens, "--tokens")
    kinds, protocols = _either(between, FOOTAGE, "--between"), _either(protocol, ("end", "rounds"), "--protocol")
    needles = ("slides" if model == "demo" else "text") if needles == "auto" else needles
    if needles not in NEEDLES:
        raise UsageError(f"--needles {needles} is unknown", "slides, text or auto")
    if plot is not None:
        check_plot(plot)
    quiet_libraries(verbose)
    from edgemllm.device import profiles
    from edgemllm.launch import Request
    from edgemllm.runs.lineup import line_up

    names = options.listed(policy or profiles.load(profile).cache.policy, "--policy")
    if against is not None and against not in names:
        raise UsageError(f"--against {against} is not among the policies", f"one of {', '.join(names)}")
    request = Request(model, profile, None, set, "", quant, dtype, device, chunk, offline, trust_remote_code)
    launches: list[Launch] = []
    for budget in options.listed(kv_budget, "--kv-budget"):
        launches += [
            dataclasses.replace(launch, request=dataclasses.replace(launch.request, kv_budget=budget))
            for launch in line_up(dataclasses.replace(request, kv_budget=budget), names, length)
        ]
    lacking = next((launch.plan for launch in launches if not launch.plan.fits), None)
    if lacking is not None:
        raise lacking.error()
    run = Recall(display, launches, kinds, protocols, needles, length, facts, streams, seed, against or names[0], jsonl)
    run.go()
    if json:
        print(json_module.dumps({"schema": SCHEMA, "command": "recall", **run.head(), "runs": run.runs()}), flush=True)
    elif jsonl:
        print(json_module.dumps({"schema": SCHEMA, "event": "end", "exit_code": run.code}), flush=True)
    else:
        from edgemllm.display.recall import table

        print(table(run.runs()), flush=True)
    if plot is not None:
        from edgemllm.display.recall import plot as draw

        draw(run.runs(), f"{model}, {length} tokens, {streams} streams", plot)
    if run.code:
        raise typer.Exit(run.code)


def _either(word: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    if word != "both" and word not in known:
        raise UsageError(f"{option} {word} is unknown", f"one of {', '.join(known)}, both")
    return known if word == "both" else (word,)


@dataclass
class Recall:
    """Every stream under every policy and budget."""

    display: Display
    launches: list[Launch]
    kinds: tuple[str, ...]
    protocols: tuple[str, ...]
    needles: str
    length: int
    facts: int
    streams: int
    seed: int
    against: str
    jsonl: bool
    scores: dict[tuple[str, str, int], Score] = field(default_factory=dict)
    """By footage, protocol and the launch's number."""
    kv: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    code: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def go(self) -> None:
        """Run until all streams are asked or a signal comes; what was counted stays."""
        with Interrupts() as self.interrupts:
            session = self.launches[0].open()
            self.family = session.family
            for kind in self.kinds:
                for number in range(self.seed, self.seed + self.streams):
                    stream = self._stream(kind, number)
                    for protocol in self.protocols:
                        for place in range(len(self.launches)):
                            if self.interrupts.asked():
                                break
                            self._ask(stream, kind, protocol, place)
        self.code = self.interrupts.code
        self.display.clear()
        if self.code:
            self.display.say(f"stopped after {self.done} of {self._planned()} passes; the table holds what was counted")

    def head(self) -> dict[str, Any]:
        """What all runs have in common."""
        described = self.launches[0].describe()
        del described["policy"]
        return {
            **described, "needles": self.needles, "stream_tokens": self.length, "facts": self.facts, "streams": self.streams,
            "seed": self.seed, "chunk": self.launches[0].chunk, "against": self.against,
        }  # fmt: skip

    def runs(self) -> list[dict[str, Any]]:
        """One entry for every policy, budget, footage and protocol that saw a stream."""
        from edgemllm.runs.recall_score import paired

        found = []
        for (kind, protocol, place), score in self.scores.items():
            launch = self.launches[place]
            rivals = [
                other
                for (k, p, n), other in self.scores.items()
                if (k, p) == (kind, protocol)
                and self.launches[n].policy_name == self.against
                and self.launches[n].request.kv_budget == launch.request.kv_budget
            ]
            found.append(
                {
                    "policy": launch.policy_name,
                    "kv_budget": launch.request.kv_budget,
                    "kv_budget_tokens": launch.budget,
                    "between": kind,
                    "protocol": protocol,
                    **score.as_json(),
                    "against": paired(score.old, rivals[0].old) if rivals else None,
                    "kv": self.kv[kind, protocol, place],
                }
            )
        return found

    def _ask(self, stream: Stream, kind: str, protocol: str, place: int) -> None:
        from edgemllm.launch import out_of_memory
        from edgemllm.runs.recall import PROTOCOLS
        from edgemllm.runs.recall_score import Score

        launch = self.launches[place]
        if hasattr(launch.policy, "seed"):  # facts lie at the same places in every stream: a sample must not
            launch = dataclasses.replace(launch, policy=dataclasses.replace(launch.policy, seed=stream.haystack.seed))
        session = launch.open(family=self.family)
        self.interrupts.session = session
        with out_of_memory():
            answers = PROTOCOLS[protocol](session, stream)
        if self.interrupts.asked():
            return  # half a stream counts for nobody
        score = self.scores.setdefault((kind, protocol, place), Score())
        score.add(answers, self._bins(protocol, answers.distances))
        self.kv[kind, protocol, place] = session.kv()
        self.done += 1
        if self.jsonl:
            event = {
                "event": "stream", "t": round(time.monotonic() - self.started, 3), "policy": launch.policy_name,
                "between": kind, "protocol": protocol, "kv_budget_tokens": launch.budget, "seed": stream.haystack.seed,
                "share": sum(answers.right) / len(answers.right),
            }  # fmt: skip
            print(json_module.dumps({"schema": SCHEMA, **event}), flush=True)
        self.display.update(
            lambda: (
                f"stream {self.done}/{self._planned()}  {launch.policy_name} {launch.budget}  {kind} {protocol}  "
                f"old facts {score.old.share or 0:.0%}"
            )
        )

    def _bins(self, protocol: str, distances: list[int | None]) -> list[int]:
        """Distances of the report: those of the first stream at its end, or eight equal steps on the way."""
        if protocol == "end":
            self.nominal = getattr(self, "nominal", None) or [each for each in distances if each is not None]
            return self.nominal
        return [self.length * (2 * step + 1) // 16 for step in range(8)]

    def _planned(self) -> int:
        return len(self.kinds) * len(self.protocols) * self.streams * len(self.launches)

    def _stream(self, kind: str, seed: int) -> Stream:
        from edgemllm.inputs.needles import slide_haystack, text_haystack
        from edgemllm.runs.recall import Stream

        if self.needles == "slides":
            each = self.family.media_tokens(self.family.model.config)[0]
            if not each:
                raise UsageError(f"{self.launches[0].request.model} takes no video", "--needles text")
            return Stream(self.family, slide_haystack(seed, max(24, self.length // each), self.facts, kind == "diverse"))
        # Sentences are about as long as one another: a first haystack tells how many make the length.
        probe = text_haystack(seed, 64, 2, kind == "diverse").items
        average = len(self.family.tokenize("".join(probe))) / len(probe)
        return Stream(self.family, text_haystack(seed, max(24, round(self.length / average)), self.facts, kind == "diverse"))
