"""A vision tower in bfloat16 beside a language model in float32: where it is chosen, loaded, planned, fed and saved."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media import both, chunk_of, footage, picture
from test_families import saved
from test_model_spec import real_bytes
from test_seam import EXACT
from tiny import VISION_MODELS, gemma4, llava_onevision, qwen2_5_vl, smolvlm
from typer.testing import CliRunner

from edgemllm import session_file
from edgemllm.archive.archive import Archive
from edgemllm.archive.calibration import finders_of
from edgemllm.cli.main import app
from edgemllm.device import processor
from edgemllm.errors import UsageError
from edgemllm.models import loading, tower
from edgemllm.models.loading import DEMO
from edgemllm.models.spec import ModelSpec
from edgemllm.planning import auto
from edgemllm.planning.decision import Decision, plan_only
from edgemllm.planning.request import Request
from edgemllm.policies.full import Full
from edgemllm.screen import changes
from edgemllm.session import Session

LARGE = "random:smolvlm2-0.5b"
PADDED = ("lfm2_vl", "gemma4")
"""Types whose processors fill pictures up, which rounds otherwise: here no picture is filled up."""


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16, wherever the tests run."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: True)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("make", VISION_MODELS, ids=lambda make: make.__name__)
def test_logits_are_the_stock_models_with_the_same_tower_and_off_by_its_rounding_alone(make) -> None:
    tiny = make()
    image, frames = picture(1, 40, 24), footage(3) if tiny.family.video_token else []
    exact, before = both(tiny, image, frames)
    tower.cast(tiny.model, torch.bfloat16)
    kind = tiny.model.config.model_type
    if kind == "smolvlm":  # transformers (5.24) itself wants features in the tower's dtype to be those of the embeddings
        (chunk, _), stock = chunk_of(tiny, image, frames), None
    else:
        stock, chunk = both(tiny, image, frames)
    assert (tiny.family.vision_dtype, tiny.family.dtype, chunk.embeds.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    ours = tiny.run(chunk, 7, Full())
    if kind in PADDED:
        assert (ours - stock).norm() < 2 * (stock - exact).norm()
    elif stock is not None:
        torch.testing.assert_close(ours, stock, **EXACT)
    assert (chunk.embeds - before.embeds).norm() < 0.02 * before.embeds.norm()
    tiny.model.to(torch.bfloat16)
    half, _ = both(tiny, image, frames)
    assert (ours - exact).norm() < (half.float() - exact).norm()


@pytest.mark.parametrize(("make", "quant"), [
    (gemma4, "none"), (llava_onevision, "int4"), (qwen2_5_vl, "nf4"), (smolvlm, "int8"),
], ids=lambda part: getattr(part, "__name__", part))  # fmt: skip
def test_a_loaded_tower_is_the_one_in_float32_rounded_and_takes_what_is_planned(make, quant: str, tmp_path: Path) -> None:
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    tiny = make()
    folder = loading.locate(saved(tiny, tmp_path))
    tiny.model.config.get_text_config().vocab_size = 400  # room for a token a byte
    for checkpoint in (folder, loading.Checkpoint("random", None, tiny.model.config)):
        whole, apart = (loading.load(checkpoint, quant, vision_dtype=kind).model for kind in (None, "bfloat16"))
        theirs, ours = whole.state_dict(), apart.state_dict()
        rounded = [name for name in theirs if theirs[name].dtype is torch.float32 and ours[name].dtype is torch.bfloat16]
        assert len(rounded) > 10
        assert all(torch.equal(theirs[name].to(ours[name].dtype), ours[name]) for name in theirs)
        spec = replace(ModelSpec.from_config(checkpoint.config), on_cpu=True)
        planned = spec.weights_bytes(quant, "float32", "bfloat16")
        assert planned == pytest.approx(real_bytes(apart), rel=0.05)


@pytest.mark.parametrize(("flags", "found"), [
    ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", True), ("flags\t\t: fpu avx2 avx512f\n", False),
    ("Features\t: fp asimd bf16x\n", False), ("", False), (None, False),
])  # fmt: skip
def test_a_processor_is_known_by_its_flags(flags: str | None, found: bool, tmp_path: Path) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: amx_bf16\n{flags}")
    assert processor.multiplies_bfloat16(tmp_path) is found


def chosen(model: str = LARGE, **options: Any) -> Decision:
    return plan_only(Request(model, **{"device": "cpu", **options}))


def test_auto_takes_it_for_a_large_tower_where_the_processor_gains_and_nowhere_else(
    gains: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chosen()
    assert (made.dtype, made.vision_dtype) == ("float32", "bfloat16")
    assert chosen(profile="cpu").vision_dtype == "bfloat16"  # the machine here, as its memory is
    elsewhere, whole = chosen(profile="orin-nano-8gb"), chosen(dtype="float32")
    assert (elsewhere.vision_dtype, whole.dtype, whole.vision_dtype) == ("float32", "float32", "float32")
    spec = made.facts.spec
    assert whole.plan.weights_bytes - made.plan.weights_bytes == 2 * spec.vision_parameters
    assert made.plan.vision_bytes < 0.6 * whole.plan.vision_bytes
    assert chosen(dtype="bfloat16").vision_dtype == "bfloat16"
    assert chosen("demo").vision_dtype == "float32"
    assert chosen("random:bench-134m").vision_dtype is None
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: False)
    assert chosen().vision_dtype == "float32"


def test_the_demo_answers_with_such_a_tower_and_says_so(gains: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "LARGE_TOWER", 1)
    question = "What number was with the red square?"
    done = CliRunner().invoke(app, ["chat", "--device", "cpu", "--video", str(DEMO / "lecture.mp4"), "--json", question])
    found = json.loads(done.stdout)
    assert (found["dtype"], found["vision_dtype"], found["turns"][0]["answer"]) == ("float32", "bfloat16", "5")


def test_a_session_and_its_archive_continue_where_frames_are_computed_in_another_dtype_and_that_is_said(tmp_path: Path) -> None:
    apart, whole = (loading.load(loading.locate("demo"), vision_dtype=kind) for kind in ("bfloat16", None))
    session_file.save(Session(apart, Full(), None), tmp_path / "state.edge")
    other = Session(whole, Full(), None)
    run = session_file.load(other, tmp_path / "state.edge")
    assert changes(run, other) == "; frames are computed in float32 now, it was bfloat16"
    assert changes(run, Session(apart, Full(), None)) == ""
    with contextlib.closing(Archive(tmp_path / "archive.db")) as archive:
        assert finders_of(apart, archive) == finders_of(whole, archive)
    with torch.no_grad():
        next(tower.tensors(whole.model)).mul_(2)
    with pytest.raises(UsageError, match="other weights"):
        session_file.load(other, tmp_path / "state.edge")
