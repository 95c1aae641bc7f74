"""Measure `edgemllm perplexity` as docs/measurements/perplexity.md describes it, part by part, each one resumable.

    python -m lab.measure.perplexity long beyond sweep --books DIR
    python -m lab.measure.perplexity second --second-model DIR --second-text DIR
    python -m lab.measure.perplexity report

`long` streams 4M tokens of shuffled book pages under inf-mllm and streaming-llm. `beyond` goes past the trained length
with full and window. `sweep` tries inf-mllm's settings. `second` repeats the first with another model. `report` writes the
page and copies the plots from what is there. Options after `--` go to every `edgemllm perplexity` (`-- --chunk 256`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgemllm.commands.lineup import line_up
from edgemllm.commands.perplexity.run import Run
from edgemllm.media.text import Text
from edgemllm.models.tokens import TokenStream
from edgemllm.planning.request import Request
from lab.measure import pages

PAGE = pages.FOLDER / "perplexity.md"
PIECE = 16_000
"""Characters of a page: books differ, so that only a stream of shuffled pages is alike at its two ends."""

BIAS, RECENT, WINDOW = (0.0, 0.003, 0.01, 0.03), (0.25, 0.5, 0.75, 0.9), (8, 32, 64)
ENDS = (0.0, 0.1), (0.9, 1.0)
"""Shares of a run whose speeds are compared."""

SWEEP_CHUNK = 128
"""The same for every setting, or their numbers do not compare."""


def shuffled(books: Path, path: Path) -> None:
    """Cut the books into pages at paragraphs, in an order that is always the same."""
    pages = []
    for book in sorted(books.rglob("*.txt")):
        text, start = book.read_text(encoding="utf-8", errors="replace"), 0
        while start < len(text):
            end = text.find("\n\n", start + PIECE)
            end = len(text) if end < 0 else end + 2
            pages.append(text[start:end])
            start = end
    random.Random(0).shuffle(pages)
    path.write_text("".join(pages), encoding="utf-8")


def command(out: Path, name: str, *options: object) -> None:
    """Run one `edgemllm perplexity` into NAME.json and NAME.png, continuing an interrupted one; done ones stay."""
    if (out / f"{name}.json").exists():
        return
    arguments = ["perplexity", *map(str, options), "--json", "--plot", str(out / f"{name}.png")]
    arguments += ["--checkpoint", str(out / f"{name}.edge"), "--checkpoint-every", "100k", "--resume"]
    print("edgemllm", *arguments, file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(pages.TOP)}
    done = subprocess.run([sys.executable, "-m", "edgemllm", *arguments], stdout=subprocess.PIPE, check=False, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    typed = [Path(word).name if Path(word).exists() else word for word in map(str, options)]
    (out / f"{name}.json").write_text(json.dumps({**json.loads(done.stdout), "typed": typed}))


def sweep(out: Path, text: Path, tokens: int, budget: str) -> None:
    """Run inf-mllm under every combination, and streaming-llm, at the same bytes, into sweep.json."""
    path, family = out / "sweep.json", None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for bias, recent, window in [(None, None, None), *itertools.product(BIAS, RECENT, WINDOW)]:
        row: dict[str, Any] = {"bias": bias, "recent": recent, "window": window}
        if any(row.items() <= known.items() for known in rows):
            continue
        settings = [f"inf-mllm.{key}={value}" for key, value in row.items() if value is not None]
        pair = line_up(Request(settings=settings, kv_budget=budget, chunk=SWEEP_CHUNK), ["inf-mllm", "streaming-llm"], tokens)
        launch = pair[0] if settings else pair[1]
        session = launch.open(family=family)
        family = session.family
        run = Run(launch.policy_name, session, TokenStream(Text([str(text)]), family.tokenizer), tokens)
        run.go(lambda run: False)
        if run.failure is not None:
            raise run.failure
        found = run.as_json(launch.device)
        row |= {name: found[name] for name in ("policy", "tokens", "perplexity", "chunk", "tokens_per_s")}
        rows.append(row | {"kv_tokens": launch.budget, "kv_bytes": found["kv"]["bytes"]})
        print(rows[-1], file=sys.stderr, flush=True)
        path.write_text(json.dumps({"rows": rows}))


# ---- the page ------------------------------------------------------------------------------------------------------


def span(run: dict[str, Any], start: float, end: float) -> tuple[float, float]:
    """Return perplexity, and tokens per second, between the points of the curve nearest to two places."""
    points = [{"tokens": 0, "nll_nats": 0.0, "seconds": 0.0}, *run["curve"]]
    first, last = (min(points, key=lambda point: abs(point["tokens"] - place)) for place in (start, end))
    tokens = last["tokens"] - first["tokens"]
    return math.exp((last["nll_nats"] - first["nll_nats"]) / tokens), tokens / (last["seconds"] - first["seconds"])


NAMES = (
    "policy", "tokens", "perplexity", "of tokens {early:,} to {late:,}", "of the last 10%", "change", "bits a byte",
    "KV slots a layer", "KV bytes at every point", "RSS from 10% to 100%", "tokens/s, first 10% with a full cache",
    "tokens/s, last 10%", "ratio", "ratio of the fastest points there", "chunk",
)  # fmt: skip


def flat(found: dict[str, Any]) -> str:
    """Show whether perplexity, memory and speed stay the same: a column for each policy."""
    total = found["runs"][0]["tokens"]
    names = [name.format(early=total // 40, late=total // 8) for name in NAMES]
    first, *rows = zip(names, *map(steadiness, found["runs"]), strict=True)
    return pages.table(first, rows, left=["policy"])


def steadiness(run: dict[str, Any]) -> list[str]:
    """Compare the beginning of a run with its end: a cell for each of NAMES."""
    total, full_at = run["tokens"], run["full_at"] or 0
    early, late = span(run, total / 40, total / 8)[0], span(run, 0.9 * total, total)[0]
    first, last = span(run, full_at, full_at + total / 10)[1], span(run, 0.9 * total, total)[1]
    full = [point for point in run["curve"] if point["tokens"] > full_at]
    tenth = min(full, key=lambda point: abs(point["tokens"] - total / 10))
    growth = full[-1]["rss_bytes"] / tenth["rss_bytes"] - 1
    sizes = sorted({point["kv_bytes"] for point in full})
    # What else the machine does only makes it slower: the fastest points are the ones to compare.
    best = [max(p["tokens_per_s"] for p in full if a * total <= p["tokens"] - full_at <= b * total) for a, b in ENDS]
    return [
        run["policy"], f"{total:,}", f"{run['perplexity']:.3f}", f"{early:.3f}", f"{late:.3f}", f"{late / early - 1:+.2%}",
        f"{run['bits_per_byte']:.4f}", f"{run['kv']['budget_tokens']}", " ".join(f"{size:,}" for size in sizes),
        f"{growth:+.2%}", f"{first:.0f}", f"{last:.0f}", f"{last / first:.1%}", f"{best[1] / best[0]:.1%}", f"{run['chunk']}",
    ]  # fmt: skip


def beyond(found: dict[str, Any]) -> str:
    """Show what happens beyond the trained length."""
    names = ("policy", "tokens", "perplexity", "first tenth", "last tenth", "highest position", "KV bytes", "why")
    rows = []
    for run in found["runs"]:
        total = run["tokens"]
        first, last = span(run, 0, total / 10)[0], span(run, 0.9 * total, total)[0]
        why = "; ".join([*([run["stopped"]] if run["stopped"] else []), *run["notes"]])
        figures = (f"{total:,}", f"{run['perplexity']:.2f}", f"{first:.2f}", f"{last:.2f}", run["highest_position"])
        rows.append((run["policy"], *figures, f"{run['kv']['bytes']:,}", why))
    return pages.table(names, rows, left=["policy", "why"])


def swept(rows: list[dict[str, Any]]) -> str:
    """Show every setting, the best first."""
    lines = []
    for row in sorted(rows, key=lambda row: float(row["perplexity"])):
        figures = ["" if row[name] is None else f"{row[name]:g}" for name in ("bias", "recent", "window")]
        lines.append([row["policy"], *figures, row["kv_tokens"], f"{row['perplexity']:.3f}"])
    return pages.table(["policy", "bias", "recent", "window", "KV slots a layer", "perplexity"], lines, left=["policy"])


def report(out: Path) -> None:
    """Write the page, of the parts that are there."""
    known: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    page = [
        "# Perplexity of an endless stream in a fixed cache",
        f"{pages.machine()}. "
        "One run each. Made by `python -m lab.measure.perplexity`, whose first lines say how; `pages.txt` are English novels "
        f"that the demo model never saw, cut into pages of {PIECE:,} characters and shuffled, so that both ends are alike. "
        "Tokens per second are of a machine that does other things too; `../perplexity.md` compares early and late in turn.",
    ]
    for name, title, table in (
        ("long", "The long run", flat),
        ("beyond", "Beyond the trained length", beyond),
        ("second", "A second model", flat),
    ):
        if name in known:
            head = known[name]
            shutil.copy(out / f"{name}.png", PAGE.with_name(f"perplexity-{name}.png"))
            page += [
                f"## {title}",
                f"    edgemllm perplexity {' '.join(head['typed'])} --json --plot {name}.png",
                table(head),
                f"![perplexity, memory and speed over the stream](perplexity-{name}.png)",
            ]
    if "sweep" in known:
        rows = known["sweep"]["rows"]
        first = (
            f"The first {rows[0]['tokens']:,} tokens of the same text in chunks of {SWEEP_CHUNK}, "
            f"at {rows[0]['kv_bytes']:,} bytes of KV cache or less."
        )
        page += ["## The settings of inf-mllm", first, swept(rows)]
    PAGE.write_text("\n\n".join(page) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("long", "beyond", "sweep", "second", "report"))
    parser.add_argument("--books", type=Path, help="a folder of .txt books")
    parser.add_argument("--second-model", type=Path)
    parser.add_argument("--second-text", type=Path)
    parser.add_argument("--out", type=Path, default=pages.TOP / "build" / "perplexity", help="results, kept between calls")
    parser.add_argument("--tokens", default="4M", help="of the long run")
    parser.add_argument("--beyond-tokens", default="16k")
    parser.add_argument("--second-tokens", default="1M")
    parser.add_argument("--sweep-tokens", type=int, default=50_000)
    parser.add_argument("--kv-budget", default="auto")
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    options, further = parser.parse_args(own), sys.argv[len(own) + 2 :]
    out, text = options.out, options.out / "pages.txt"
    out.mkdir(parents=True, exist_ok=True)
    if options.books is not None and not text.exists():
        shuffled(options.books, text)
    budget, pair = ("--kv-budget", options.kv_budget), "inf-mllm,streaming-llm"
    for part in options.parts:
        if part == "long":
            command(out, part, "--text", text, "--tokens", options.tokens, "--policy", pair, *budget, *further)
        elif part == "beyond":
            names = f"full,window,{pair}"
            # `auto`: with a budget full would end where that ends.
            command(out, part, "--text", text, "--tokens", options.beyond_tokens, "--policy", names, *further)
        elif part == "second":
            source = ("--model", options.second_model, "--text", options.second_text, "--loop")
            command(out, part, *source, "--tokens", options.second_tokens, "--policy", pair, *budget, *further)
        elif part == "sweep":
            sweep(out, text, options.sweep_tokens, options.kv_budget)
        else:
            report(out)


if __name__ == "__main__":
    main()
