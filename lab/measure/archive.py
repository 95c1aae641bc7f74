"""Measure the archive: what is known of hours of slides and of a long text, with and without it.

    python -m lab.measure.archive slides --frames 10800 --facts 40 --slots 48,64 --policies edge,oracle,random
    python -m lab.measure.archive text --model SmolLM2-135M-Instruct.Q4_1.gguf --novel novel.txt --tokens 8000 --slots 512
    python -m lab.measure.archive retrieval --frames 3600 --slots 64 --policies "" --archived edge

`slides` watches the same drawn footage under every policy, and under `--archived` ones again with an archive, then asks about
every slide of the same cache. `text` does so with facts in a novel. `retrieval` says how soon the index leads to the right
place: by words, by keys, by both, and by chance. A line of JSON for each run of the first two goes to --out as well.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemllm.archive import choice
from edgemllm.archive.archive import Archive
from edgemllm.archive.calibration import finders_of
from edgemllm.archive.heads import queries_of
from edgemllm.archive.index import fused
from edgemllm.archive.session import ArchivedSession
from edgemllm.commands.recall.forms import FORMS
from edgemllm.commands.recall.haystacks import Haystacks
from edgemllm.commands.recall.lecture import slide_haystack
from edgemllm.commands.recall.prose import Book
from edgemllm.commands.recall.recent import NAME, RecentFrames
from edgemllm.commands.recall.run import Answers, Stream, at_the_end
from edgemllm.launch import prepare
from edgemllm.models.families.base import ModelFamily
from edgemllm.planning.request import Request
from edgemllm.session import Session
from lab.measure import pages


class Timed(Session):
    """Counts the milliseconds to the first token of each answer."""

    def ask(self, *arguments: Any, **more: Any) -> Iterator[str]:
        began, times = time.perf_counter(), vars(self)["times"]
        for number, piece in enumerate(super().ask(*arguments, **more)):
            if not number:
                times.append(1000 * (time.perf_counter() - began))
            yield piece


class TimedRecent(Timed, RecentFrames):
    """The same, of the newest frames alone."""


class TimedArchived(Timed, ArchivedSession):
    """The same with an archive."""


class ReadStream(Stream):
    """A text that is read as `chat --text` reads it, so that it comes into an archive."""

    def show(self, session: Session, first: int, last: int) -> None:
        session.read_on("".join(self.haystack.items[first:last]))


def measured(session: Session, stream: Stream, name: str, slots: str) -> dict[str, Any]:
    """Watch or read the whole stream, ask about everything, and count."""
    began, times = time.perf_counter(), vars(session).setdefault("times", [])  # shared by branches
    if isinstance(session, ArchivedSession):
        session.source = "measured"
    answers = at_the_end(session, stream)
    return {
        "policy": name, "slots": slots, **counted(answers), "kv_bytes": session.kv()["bytes"],
        "ttft_ms": round(statistics.median(times), 1), "seconds": round(time.perf_counter() - began),
        "held": round(answers.held, 3), "peak_slots": answers.peak,
    }  # fmt: skip


def counted(answers: Answers) -> dict[str, Any]:
    """Return how many old and recent facts, and questions about what was never shown, were answered correctly."""
    rows = list(zip(answers.distances, answers.right, answers.recent, strict=True))
    kinds = {
        "old": [right for distance, right, recent in rows if distance is not None and not recent],
        "recent": [right for distance, right, recent in rows if distance is not None and recent],
        "unseen": [right for distance, right, _ in rows if distance is None],
    }
    return {name: f"{sum(marks)} of {len(marks)}" for name, marks in kinds.items()}


def sessions(options: argparse.Namespace, family: ModelFamily | None) -> Iterator[tuple[str, str, Session]]:
    """Open a session for every policy and size, without and with an archive."""
    for slots in options.slots.split(","):
        for policy in (
            *filter(None, options.policies.split(",")),
            *(f"{name}+archive" for name in options.archived.split(",") if name),
        ):
            name, _, kept = policy.replace(NAME, "window").partition("+")
            launch = prepare(Request(model=options.model, policy=name, kv_budget=slots, quant="none", chunk=options.chunk))
            if not kept:
                yield policy, slots, launch.open(family=family, make=TimedRecent if policy == NAME else Timed)
                continue
            with tempfile.TemporaryDirectory() as folder:
                archive = Archive(Path(folder) / "archive.db", say=print)
                make = functools.partial(TimedArchived, archive=archive, share=options.share)
                yield policy, slots, launch.open(family=family, make=make)
                print(f"archive of {archive.counts()}: {archive.database.nbytes} bytes", flush=True)
                archive.close()


def retrieval(session: ArchivedSession, stream: Stream) -> Iterator[dict[str, Any]]:
    """Show the whole stream, then say for each question how soon each way of finding comes to its place."""
    session.source = "measured"
    for start in range(0, len(stream.haystack.items), 64):
        stream.begin(session, record=False)
        stream.show(session, start, min(start + 64, len(stream.haystack.items)))
    archive, found = session.archive, finders_of(session.family, session.archive)
    text, ends = not stream.frames, list(itertools.accumulate(map(len, stream.haystack.items if not stream.frames else [])))
    rng = random.Random(0)
    for needle in stream.haystack.needles:
        question, heads = needle.question, found.words if text else found.pictures
        assert heads is not None
        places = archive.passage_blocks() if text else archive.frame_blocks()
        by_keys = choice.ranked(places, heads, queries_of(session.family, heads.heads, question), peak=not text)
        by_words = archive.matching(question) if text else []
        everything = archive.within(1, 0, float("inf"))
        spread = rng.sample(everything, 8)
        first, last = (ends[needle.first - 1], ends[needle.last]) if text else (needle.first, needle.last)
        ways = {"words": by_words, "keys": by_keys, "both": fused(by_words, by_keys) if text else by_keys, "uniform": spread}
        for way, order in ways.items():
            hits = [number for number, place in enumerate(order[:8]) if place.first <= last and place.last >= first]
            yield {"form": needle.form, "way": way, "rank": hits[0] + 1 if hits else None}


def report(marks: list[dict[str, Any]]) -> str:
    """Return a table: for each way and form how many questions had their place among the first 1, 4 and 8."""
    rows = []
    for way in ("words", "keys", "both", "uniform"):
        for form in (*sorted({mark["form"] for mark in marks}), "all"):
            ranks = [mark["rank"] for mark in marks if mark["way"] == way and form in (mark["form"], "all")]
            counts = [sum(rank is not None and rank <= most for rank in ranks) for most in (1, 4, 8)]
            rows.append([way, form, len(ranks), *counts])
    return pages.table(["way", "form", "questions", "first", "first 4", "first 8"], rows, left=["way", "form"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("slides", "text", "retrieval"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--frames", type=int, default=10800)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--unseen", type=int, default=8)
    parser.add_argument("--needles", nargs="+", choices=list(FORMS), default=list(FORMS), help="forms of facts in a novel")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--slots", default="48,64")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--policies", default="edge,oracle,random")
    parser.add_argument("--archived", default="edge")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--diverse", action="store_true")
    parser.add_argument("--novel", default="")
    parser.add_argument("--out", type=Path, default=Path("build/archive.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    family = prepare(Request(model=options.model, quant="none")).open().family
    for seed in map(int, options.seeds.split(",")):
        if options.part == "slides" or (options.part == "retrieval" and not options.novel):
            haystack = slide_haystack(seed, options.frames, options.facts, options.diverse, options.unseen)
            stream = Stream(family, haystack)
        else:
            haystacks = Haystacks(family, Book(options.novel), options.tokens)
            stream = ReadStream(family, haystacks.stream(tuple(options.needles), "diverse", seed, options.facts).haystack)
        for name, slots, session in sessions(options, family):
            if options.part == "retrieval":
                if isinstance(session, ArchivedSession):
                    print(report(list(retrieval(session, stream))), flush=True)
                continue
            found = {"seed": seed, **measured(session, stream, name, slots)}
            print(json.dumps(found), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
