"""Policies from files outside the package: copies of the shipped ones, the example of CONTRIBUTING.md, and wrong ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run
from test_cache import SMALL
from tiny import llama, random_ids

from edgemllm import policies
from edgemllm.errors import UsageError
from edgemllm.policies.base import CachePolicy
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.policies.snapkv import SnapKV

TOP = Path(__file__).parents[1]
EXAMPLE = TOP / "scripts" / "examples" / "mine.py"
pytestmark = pytest.mark.usefixtures("inference")


@pytest.mark.parametrize("name", policies.names())
def test_a_copy_of_a_shipped_policy_answers_as_the_shipped_one(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.py"
    copy.write_text((TOP / "edgemllm" / "policies" / f"{name.replace('-', '_')}.py").read_text())
    tiny, chunk = llama(), None
    chunk = tiny.text_chunk(random_ids(70))
    found = []
    for policy in (policies.build(name, SMALL.get(name, [])), policies.build(str(copy), SMALL.get(name, []))):
        logits = tiny.run(chunk, 6, policy, 24 if policy.bounded else None)
        policy.after_prefill(tiny.cache.managed)
        found.append((logits, [layer.positions[..., : layer.length] for layer in tiny.cache.layers]))
    (mine, mine_kept), (theirs, theirs_kept) = found
    assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(mine_kept, theirs_kept, strict=True))


def test_the_example_of_contributing_is_the_file_that_is_checked_and_run(tmp_path: Path) -> None:
    assert f"```python\n{EXAMPLE.read_text()}```\n" in (TOP / "CONTRIBUTING.md").read_text()
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())
    shown = run("policies", "./mine.py:Mine", cwd=tmp_path).stdout
    assert shown.startswith("mine: every third token, and the newest.\n")
    assert "  every = 3  (a whole number from 1 upwards)\n      Distance of the tokens that stay.\n" in shown
    done = run(
        "chat", "--policy", "./mine.py:Mine", "--set", "every=4", "--kv-budget", "64", "--chunk", "16", "--max-tokens", "8",
        "--json", "-q", "--video", str(TOP / "edgemllm/assets/demo/lecture.mp4"), "--max-frames", "40", "hi", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["policy"] == "./mine.py:Mine"
    assert max(result["kv"]["tokens_per_layer"]) <= 64
    assert result["kv"]["evicted_tokens"] > 0


HEAD = """
from dataclasses import dataclass
import torch
from edgemllm.policies.base import CachePolicy

@dataclass(frozen=True)
class Mine(CachePolicy):
    def score(self, layer):
"""
WRONG = {
    "return torch.zeros(3)": r"policy Mine: score\(\) returned \(3,\), expected \(1, 1, 24\) or \(1, 2, 24\)",
    "return torch.zeros(1, 2, layer.length + 5)": r"returned \(1, 2, 29\), expected \(1, 1, 24\) or \(1, 2, 24\)",
    "return None": r"policy Mine: score\(\) returned None, expected \(1, 1, 24\) or",
    "return torch.full((1, 1, layer.length), torch.nan)": r"policy Mine: score\(\) returned NaN",
    "return torch.full((1, 2, layer.length), -torch.inf)": r"policy Mine: score\(\) returned -inf for every slot of a head",
}


@pytest.mark.parametrize("body", WRONG)
def test_what_is_no_score_is_an_error_that_names_policy_and_shapes(body: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"{HEAD}        {body}\n")
    tiny = llama()
    with pytest.raises(UsageError, match=WRONG[body]):
        tiny.run(tiny.text_chunk(random_ids(70)), 6, policies.build(f"{tmp_path}/mine.py:Mine"), 24)


@pytest.mark.parametrize("settings", [[], ["shared_heads=true"]])
def test_scores_may_be_whole_numbers_or_truth_values(settings: list[str], tmp_path: Path) -> None:
    """And views of what must not change."""
    kept = []
    for body in ("torch.arange(layer.length)", "torch.arange(layer.length).double()", "torch.arange(layer.length).bool()"):
        (tmp_path / "mine.py").write_text(f"{HEAD}        return ({body}).expand(1, 2, -1)\n")
        tiny = llama()
        tiny.run(tiny.text_chunk(random_ids(70)), 6, policies.build(f"{tmp_path}/mine.py", settings), 24)
        kept.append(tiny.cache.layers[0].positions[0, 0, 0, :18].tolist())
    assert kept[0] == kept[1] == list(range(46, 64))
    assert kept[2] == sorted(kept[2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEAD}        raise ValueError('boom')\n", "policy Mine: score() in line 9 of mine.py raised ValueError: boom"),
        ("raise SystemExit(0)\n", "policy file mine.py does not import: SystemExit: 0"),
        (f"{HEAD}        return torch.zeros(3)\n", "policy Mine: score() returned (3,), expected (1, 1, "),
    ],
    ids=["raises", "exits", "shape"],
)
def test_a_wrong_policy_file_is_one_line_and_exit_code_2(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    done = run("chat", "--policy", "mine.py", "--kv-budget", "12", "--chunk", "4", "-q", "What is on the screen?", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {words}")
    assert "unexpected" not in done.stderr
    assert done.stdout == ""


OVERRIDES = {
    "protected(self, layer, size):\n        return None": r"policy Mine: protected\(\) returned None, expected two counts",
    "protected(self, layer, size):\n        return 4": r"policy Mine: protected\(\) returned 4, expected two counts",
    "protected(self, layer, size):\n        return -4, 2.5": r"policy Mine: protected\(\) returned \(-4, 2.5\), expected two",
    "compress(self, layer, size):\n        pass": r"policy Mine: compress\(\) kept 24 tokens of a layer, expected 18",
}


@pytest.mark.parametrize("method", OVERRIDES)
def test_wrong_counts_and_a_layer_that_stays_too_long_are_errors_that_name_the_policy(method: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"{HEAD}        return torch.zeros(1, 1, layer.length)\n\n    def {method}\n")
    tiny = llama()
    with pytest.raises(UsageError, match=OVERRIDES[method]):
        tiny.run(tiny.text_chunk(random_ids(70)), 6, policies.build(f"{tmp_path}/mine.py:Mine"), 24)


def test_an_error_in_a_policy_of_a_package_is_named_as_one_in_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is imported, and when it chooses."""
    info = tmp_path / "offered-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edgemllm.policies]\nbroken = broken_policy\noffered = offered_policy:Mine\n")
    (tmp_path / "broken_policy.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "offered_policy.py").write_text(f"{HEAD}        return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"policy broken \(broken_policy\) does not import: ModuleNotFoundError"):
        policies.build("broken")
    tiny = llama()
    with pytest.raises(ZeroDivisionError) as raised:
        tiny.run(tiny.text_chunk(random_ids(70)), 6, policies.build("offered"), 24)
    told = policies.fault(raised.value)
    assert told is not None
    assert told.message.startswith("policy Mine: score() in line 9 of offered_policy.py raised ZeroDivisionError")


@pytest.mark.parametrize(
    ("policy", "settings", "told"),
    [
        (SnapKV, {"window": 0}, "window=0 of policy SnapKV: a whole number from 1 upwards expected"),
        (SnapKV, {"kernel": 4}, "kernel=4 of policy SnapKV: a whole number, odd, from 1 upwards expected"),
        (SnapKV, {"pooling": "mean"}, "pooling='mean' of policy SnapKV: one of avg, max expected"),
        (InfMLLM, {"window": "prompts"}, "window='prompts' of policy InfMLLM: "),
    ],
)
def test_a_setting_out_of_range_is_refused_in_python_too(
    policy: type[CachePolicy], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        policy(**settings)
