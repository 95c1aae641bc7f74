"""`edgemllm inspect`: pictures and numbers of what attention looks at."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from click.testing import Result
from tiny import llama, random_ids
from typer.testing import CliRunner

from edgemllm.cache.attention import NAME
from edgemllm.cli.main import app
from edgemllm.commands.inspect.watch import Kept, Watcher, entropies, share
from edgemllm.policies.window import Window
from edgemllm.session import Session

LECTURE = Path(__file__).parents[1] / "edgemllm" / "assets" / "demo" / "lecture.mp4"
LICENSE = Path(__file__).parents[1] / "LICENSE"


def command(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"EDGEMLLM_POLICY": None})
    assert done.exit_code == code, done.output
    return done


def test_the_map_is_the_models_own_attention(inference: None) -> None:
    """Mean over the heads, row by row, equal to what transformers returns, in chunks too."""
    tiny = llama()
    ids = random_ids(40)
    stock = tiny.use("eager").model(ids, output_attentions=True).attentions
    tiny.use(NAME)
    watcher = Watcher()
    session = Session(tiny.family, watcher, None, 16)
    session.feed(session.family.text(ids[0].tolist(), 0))
    for number, layer in enumerate(session.cache.managed):
        found = watcher.map(layer)
        assert torch.allclose(found, stock[number][0].mean(0), atol=1e-5)
        assert torch.allclose(found.sum(1), torch.ones(40), atol=1e-5)
    most = torch.arange(1, 41).log().mean()
    for number, each in enumerate(entropies(session)):
        rows = stock[number][0].double()
        wanted = -(rows * rows.clamp_min(1e-30).log()).sum(-1).mean()
        assert each.own == pytest.approx(float(wanted), abs=1e-4)
        assert each.cross is None
        assert 0 < each.own <= each.most == pytest.approx(float(most))


def test_the_share_of_a_stream_that_is_kept(inference: None) -> None:
    tiny = llama().use(NAME)
    session = Session(tiny.family, Window(), 32, 8)
    kept = Kept(96)
    session.on_step = kept.step
    session.feed(session.family.text(random_ids(96)[0].tolist(), 0))
    last = share(session, 96)
    assert float(last.sum()) == pytest.approx(session.cache.managed[0].length)
    assert last[:60].sum() == 0
    assert last[-1] == 1
    assert kept.seen == sorted(kept.seen)
    assert kept.seen[-1] == 96


def test_pictures_and_numbers_of_a_clip(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    folder = tmp_path / "pictures"
    done = command("--video", LECTURE, "--end", "12", "--out", folder, "--policy", "window,h2o", "--json", "--layer", "5")
    found = json.loads(done.stdout)
    assert (found["schema"], found["command"]) == ("edgemllm/1", "inspect")
    assert 4 * 12 < found["tokens"] < 4 * 12 + 60
    assert [each["layer"] for each in found["entropy"]] == list(range(6))
    assert all(0 <= each["cross"] <= each["most"] for each in found["entropy"])
    assert [Path(path).name for path in found["files"]] == ["attention.png", "entropy.png", "kept.png"]
    for path in found["files"]:
        image = cv2.imread(path)
        assert image is not None
        assert image.std() > 5, "an empty picture"


def test_a_short_clip_gets_the_budget_that_its_policies_need(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    command("--video", LECTURE, "--end", "4", "--out", tmp_path, "--policy", "inf-mllm,edge", "--quiet")
    assert (tmp_path / "kept.png").is_file()
    command("--video", LECTURE, "--end", "4", "--out", tmp_path / "none", "--kv-budget", "9", "--quiet", code=4)
    assert not (tmp_path / "none").exists(), "nothing is drawn before it is clear that all of it can be"


def test_a_page_of_text_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    page = tmp_path / "page.txt"
    page.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 4)
    rows = command("--text", page, "--out", tmp_path / "out").stdout.splitlines()
    assert rows[0] == "| layer | self | cross | of at most |"
    assert len([row for row in rows if row.startswith("| ")]) == 7
    assert all(row.split("|")[3].strip() == "–" for row in rows[2:8])


MISTAKES: dict[str, tuple[int, str, list[object]]] = {
    "nothing": (2, "nothing to look at", []),
    "no such layer": (2, "layers 0 to 5", ["--video", LECTURE, "--end", "5", "--layer", "9"]),
    "too long": (4, "too many for an attention map", ["--text", LICENSE, "--text", LICENSE, "--text", LICENSE]),
    "missing": (3, "no video nowhere", ["--video", "nowhere.mp4"]),
    "unknown policy": (2, "did you mean 'window'", ["--video", LECTURE, "--end", "5", "--policy", "windw"]),
    "a file for a folder": (2, "is a file", ["--video", LECTURE, "--out", LICENSE]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    code, words, arguments = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    done = command("--quiet", *arguments, code=code)
    assert words in done.stderr
    assert [line[:7] for line in done.stderr.splitlines() if not line.startswith("  try: ")] == ["error: "]
    assert done.stdout == ""
