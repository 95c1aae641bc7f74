"""What `edgemllm recall` does with its options: every stream under every policy and budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from edgemllm.commands import figures, options
from edgemllm.commands.events import Events
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.lineup import check_fit, line_up, with_focus
from edgemllm.commands.recall import recent
from edgemllm.commands.recall.calibration import Calibration, calibrate
from edgemllm.commands.recall.haystacks import Haystacks
from edgemllm.commands.recall.lecture import IN_VAIN
from edgemllm.commands.recall.options import AUTO, FORMS, StreamOptions
from edgemllm.commands.recall.prose import Book, MadeUp, Prose
from edgemllm.commands.recall.report import plot as draw
from edgemllm.commands.recall.report import table
from edgemllm.commands.recall.run import PROTOCOLS, Stream, at_the_end, has_chat
from edgemllm.commands.recall.score import Score, paired
from edgemllm.errors import UsageError, out_of_memory
from edgemllm.launch import Launch, prepare
from edgemllm.screen import Display
from edgemllm.units import parse_count


def recall(
    streams: StreamOptions,
    against: str | None,
    run: options.ComparedOptions,
    output: options.JsonOptions,
    plot: Path | None,
    screen: options.ScreenOptions,
) -> None:
    """Run the command."""
    display = screen.display()
    length = parse_count(streams.tokens, "--tokens")
    kinds, protocols, needles = streams.kinds(), streams.protocols(), streams.needles_for(run.model)
    if plot is not None:
        figures.check(plot, "--plot")
    names = run.policies
    if against is not None and against not in names:
        raise UsageError(f"--against {against} is not among the policies", f"one of {', '.join(names)}")
    prose = MadeUp() if streams.haystack is None else Book(streams.haystack)
    questions = streams.facts + (IN_VAIN if needles == ("slides",) else 0) if streams.focus else 0
    if recent.NAME in names and needles != ("slides",):
        raise UsageError(f"--policy {recent.NAME}: only a video has frames", "--needles slides, and a model that takes video")
    launches = _launches(run, names, length, questions)
    told = list(dict.fromkeys(launch.policy_name for launch in launches if launch.focus))
    if streams.focus and not told:
        raise UsageError(f"--focus: {', '.join(names)} takes none", "--policy edge,inf-mllm, or omit --focus")
    check_fit(launches)
    if told:
        display.say(f"told beforehand what will be asked of a stream: {', '.join(told)}")
    events = output.events("recall")
    work = Recall(
        display, launches, kinds, protocols, needles, prose, length, streams.facts, streams.streams, streams.seed,
        against or names[0], events,
    )  # fmt: skip
    work.go()
    for counted in work.runs():
        events.event("run", **counted)
    events.close(work.code, {**work.head(), "runs": work.runs()})
    if events.text:
        print(table(work.runs()), flush=True)
    if plot is not None:
        draw(work.runs(), f"{run.model}, {length} tokens, {streams.streams} streams", plot)
    if work.code:
        raise typer.Exit(work.code)


def _launches(run: options.ComparedOptions, names: Sequence[str], length: int, questions: int) -> list[Launch]:
    """Return a launch for every policy and budget; the reference, which has no budget, once.

    `questions`: what is known beforehand of every stream.
    """
    launches: list[Launch] = []
    plain = list(dict.fromkeys("window" if name == recent.NAME else name for name in names))
    for budget in options.listed(run.kv_budget, "--kv-budget"):
        alike = line_up(run.request(policy=None, kv_budget=budget), plain, length, reference=True)
        launches += [
            dataclasses.replace(launch, request=dataclasses.replace(launch.request, kv_budget=budget))
            for launch in (with_focus(alike, questions, length) if questions else alike)
            if launch.budget is not None or launch.policy_name not in {other.policy_name for other in launches}
        ]
    return [named for launch in launches for named in _named(launch, names)]


def _named(launch: Launch, names: Sequence[str]) -> list[Launch]:
    """Return a launch under its own name, and that of `window` under the name of the control with its bytes, as asked for."""
    control = [dataclasses.replace(launch, policy_name=recent.NAME)] if recent.NAME in names else []
    return [*([launch] if launch.policy_name in names else []), *(control if launch.policy_name == "window" else [])]


@dataclass
class Recall:
    """Asks, counts and reports."""

    display: Display
    launches: list[Launch]
    kinds: tuple[str, ...]
    protocols: tuple[str, ...]
    needles: tuple[str, ...]
    """What states the facts; AUTO until the model is loaded."""
    prose: Prose
    length: int
    facts: int
    streams: int
    seed: int
    against: str
    events: Events
    scores: dict[tuple[str, str, int], Score] = field(default_factory=dict)
    """By footage, protocol and the launch's number."""
    kv: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    calibration: Calibration | None = None
    code: int = 0
    done: int = 0

    def go(self) -> None:
        """Run until all streams are asked or a signal comes; what was counted stays."""
        with Interrupts() as self.interrupts:
            session = self.launches[0].open()
            self.family = session.family
            self.haystacks = Haystacks(self.family, self.prose, self.length)
            if self.needles == AUTO:
                self._choose()
            self.events.event("start", **self.head())
            for kind in self.kinds:
                for number in range(self.seed, self.seed + self.streams):
                    if self.interrupts.asked():
                        break
                    stream = self.haystacks.stream(self.needles, kind, number, self.facts)
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
        """Return what all runs have in common."""
        described = self.launches[0].describe()
        del described["policy"]
        described["focus"] = []  # another for every stream
        tried = self.calibration
        return {
            **described, "needles": self.needles[0] if len(self.needles) == 1 else "mixed",
            "forms": [name for name in self.needles if name in FORMS],
            "full_share": tried.share if tried and tried.asked else None,
            "stream_tokens": self.length, "facts": self.facts, "streams": self.streams, "seed": self.seed,
            "chunk": self.launches[0].chunk, "against": self.against,
        }  # fmt: skip

    def runs(self) -> list[dict[str, Any]]:
        """Return one entry for every policy, budget, footage and protocol that saw a stream."""
        found = []
        for (kind, protocol, place), score in self.scores.items():
            launch = self.launches[place]
            rivals = [
                other
                for (k, p, n), other in self.scores.items()
                if (k, p) == (kind, protocol)
                and self.launches[n].policy_name == self.against
                and (self.launches[n].budget is None or self.launches[n].request.kv_budget == launch.request.kv_budget)
            ]
            found.append(
                {
                    "policy": launch.policy_name,
                    "reference": launch.budget is None,
                    "kv_budget": None if launch.budget is None else launch.request.kv_budget,
                    "kv_budget_tokens": launch.budget,
                    "between": kind,
                    "protocol": protocol,
                    "known_questions": len(launch.focus),
                    **score.as_json(),
                    "against": paired(score.old, rivals[0].old) if rivals else None,
                    "kv": self.kv[kind, protocol, place],
                }
            )
        return found

    def _ask(self, stream: Stream, kind: str, protocol: str, place: int) -> None:
        launch = self.launches[place]
        if hasattr(launch.policy, "seed"):  # facts lie at the same places in every stream: a sample must not
            seeded: Any = launch.policy
            launch = dataclasses.replace(launch, policy=dataclasses.replace(seeded, seed=stream.haystack.seed))
        if launch.focus:
            launch = dataclasses.replace(launch, focus=tuple(stream.haystack.questions))
        session = launch.open(family=self.family, make=recent.RecentFrames if launch.policy_name == recent.NAME else None)
        self.interrupts.session = session
        with out_of_memory():
            answers = PROTOCOLS[protocol](session, stream)
        if self.interrupts.asked():
            return  # half a stream counts for nobody
        score = self.scores.setdefault((kind, protocol, place), Score())
        score.add(answers, self._bins(protocol, answers.distances))
        self.kv[kind, protocol, place] = session.kv()
        self.done += 1
        self.events.event(
            "stream", policy=launch.policy_name, between=kind, protocol=protocol, kv_budget_tokens=launch.budget,
            seed=stream.haystack.seed, share=sum(answers.right) / len(answers.right),
        )  # fmt: skip
        self.display.update(
            lambda: (
                f"stream {self.done}/{self._planned()}  {launch.policy_name} {launch.budget}  {kind} {protocol}  "
                f"old facts {score.old.share or 0:.0%}"
            )
        )

    def _bins(self, protocol: str, distances: list[int | None]) -> list[int]:
        """Return the distances of the report: those of the first stream at its end, or eight equal steps on the way."""
        if protocol == "end":
            self.nominal = getattr(self, "nominal", None) or [each for each in distances if each is not None]
            return self.nominal
        return [self.length * (2 * step + 1) // 16 for step in range(8)]

    def _planned(self) -> int:
        return len(self.kinds) * len(self.protocols) * self.streams * len(self.launches)

    def _choose(self) -> None:
        """Choose the needles: codes for a model without a chat, otherwise the forms that it answers with the full cache."""
        self.needles = ("text",)
        if not has_chat(self.family):
            return
        first = self.launches[0]
        request = dataclasses.replace(first.request, policy="full", kv_budget="auto", settings=(), focus=())
        full = prepare(request, lambda _: self.length, first.checkpoint)
        if not full.plan.fits:
            self.needles = FORMS
            self.display.say(f"full does not fit at {self.length:,} tokens, so nobody knows which needles this model answers")
            return
        self.calibration = calibrate(lambda forms, seed: self._calibrate(full, forms, seed))
        self.needles = self.calibration.forms
        if not self.interrupts.asked():
            self.display.say(self.calibration.line(self.length))

    def _calibrate(self, full: Launch, forms: Sequence[str], seed: int) -> list[tuple[str, bool]]:
        """Ask about one stream with the full cache; at least one needle of each form."""
        if self.interrupts.asked():
            return []
        stream = self.haystacks.stream(forms, self.kinds[-1], seed, max(self.facts, len(forms)))
        session = self.interrupts.session = full.open(family=self.family)
        self.display.update(lambda: f"trying needles with the full cache: {', '.join(forms)}")
        with out_of_memory():
            answers = at_the_end(session, stream)
        if self.interrupts.asked():
            return []  # half a stream counts for nobody
        return [(needle.form, right) for needle, right in zip(stream.haystack.needles, answers.right, strict=True)]
