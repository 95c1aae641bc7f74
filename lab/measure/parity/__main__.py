"""Check that edgemllm's policies keep the tokens that kvpress' presses keep, and give the same logits afterwards.

    scripts/parity [--prompts 3] [--write docs/measurements/parity.md]

Both sides read the same random models from one folder; kvpress runs in an environment of its own, which is made the first
time. Exit code 1 where a set of kept tokens differs, or a logit by more than 0.001.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from lab.measure import kvpress_environment, pages
from lab.measure.parity import ours
from lab.measure.parity.cases import CASES, LENGTHS, MODELS, SHARES, STEPS
from lab.measure.parity.ours import Compared

LIMIT = 1e-3
COLUMNS = ("kvpress", "edgemllm", "identical sets", "largest difference of a logit", "identical greedy tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="of each length")
    parser.add_argument("--write", type=Path, default=pages.FOLDER / "parity.md", help="the page")
    options = parser.parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours.make_models(folder)
        dump = folder / "theirs.pt"
        print("kvpress ...", file=sys.stderr)
        kvpress_environment.run("lab.measure.parity.theirs", folder, options.prompts, dump)
        theirs = torch.load(dump, weights_only=True)
        print("edgemllm ...", file=sys.stderr)
        found = ours.compare(folder, options.prompts, theirs)
    table = pages.table(COLUMNS, rows(found), left=COLUMNS[:2])
    print(table)
    options.write.write_text(page(options, theirs["versions"], table))
    wrong = [name for name, one in found.items() if one.same_sets < one.sets or not one.difference <= LIMIT]
    sys.exit(f"not the same: {'; '.join(wrong)}" if wrong else 0)


def rows(found: dict[str, Compared]) -> list[tuple[str, ...]]:
    """Write a line for each case."""
    return [
        (
            case.name,
            f"`{case.policy.replace('/', ' ')} positions={'cache' if case.rerotated else 'original'}`",
            f"{found[case.name].same_sets}/{found[case.name].sets}",
            f"{found[case.name].difference:.1e}",
            f"{found[case.name].same_tokens}/{found[case.name].tokens}",
        )
        for case in CASES
    ]


def page(options: argparse.Namespace, versions: dict[str, str], table: str) -> str:
    """Write the page, with the command that repeats it."""
    more = f" --prompts {options.prompts}" if options.prompts != 3 else ""
    shares = " and ".join(f"{share:.0%}" for share in SHARES)
    models = ", ".join(f"`{name}` with {heads} KV heads" for name, heads in MODELS.items())
    lengths = ", ".join(map(str, LENGTHS))
    there = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""\
# The same tokens and logits as kvpress

{time.strftime("%-d %B %Y")}, float32 on a CPU. Here: {pages.versions("torch", "transformers")}. There: {there}.

    scripts/parity{more}

Random Llamas of 4 layers and 4 query heads of 32 ({models}), whose attention logits have
a standard deviation of about 2; {options.prompts} prompts of each of {lengths} random tokens; {shares} of them kept. Both sides
load the same folders. A set is what one KV head of one layer keeps. Logits are those after the prompt and after each of {STEPS}
tokens, which are kvpress' greedy ones on both sides.

{table}

Sizes are kvpress' on both sides, so `pyramidkv` shows that tokens are ranked alike; by itself it takes the schedule that its
authors released, in which the window comes on top of the pyramid. Key rerotation is what edgemllm does by default
(`positions=cache`).
"""


if __name__ == "__main__":
    main()
