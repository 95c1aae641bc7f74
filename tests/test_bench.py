"""`edgemllm bench` and the decode path: what is counted and written, never how fast it was."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import run
from tape import taped  # noqa: F401
from tiny import MODELS, Tiny, alternating, llama, qwen2_vl, random_ids

from edgemllm import policies, session_file
from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.bits import KVBits
from edgemllm.cache.decode import MAX_GRAPHS, Decoder
from edgemllm.cache.fused_attention import FusedAttention
from edgemllm.cache.numbering import rotate_
from edgemllm.cache.rope import Rope, inverse, rotate
from edgemllm.commands.bench.cell import read_bytes
from edgemllm.commands.bench.grid import STOCK, grid
from edgemllm.errors import UsageError
from edgemllm.planning.request import Request
from edgemllm.session import Session


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("bench", "--new-tokens", "3", "--repeat", "2", *arguments)


@pytest.mark.slow
def test_a_grid_beside_stock_as_json() -> None:
    done = bench("--policy", "full,inf-mllm", "--context", "200", "--kv-budget", "96", "--compare-stock", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "edgemllm/1"
    assert found["command"] == "bench"
    assert found["device"] == "cpu"
    stock, full, bounded = found["runs"]
    assert [each["policy"] for each in found["runs"]] == ["stock", "full", "inf-mllm"]
    for each in found["runs"]:
        assert each["context"] == 200
        assert len(each["decode_ms_samples"]) == 2 * 3
        assert len(each["ttft_ms_samples"]) == 2
        assert each["decode_tps"] == pytest.approx(1e3 / each["decode_ms"]["median"], rel=1e-3)
        assert 0 < each["roofline_share"]
        assert each["kv"]["seen_tokens"] == 203
        assert each["memory"]["rss_peak_bytes"] > each["weights_bytes"]
    assert (stock["kv_budget_tokens"], full["kv_budget_tokens"], bounded["kv_budget_tokens"]) == (None, None, 96)
    assert stock["kv"]["tokens"] == 203
    assert stock["kv"]["bytes"] < full["kv"]["bytes"], "full has room to grow, and notes beside keys and values"
    assert full["kv"]["tokens"] == 203
    assert bounded["kv"]["tokens"] <= 96
    assert bounded["kv"]["bytes"] == bounded["kv"]["budget_bytes"]
    assert bounded["kv"]["evicted_tokens"] == pytest.approx(203 - bounded["kv"]["tokens"], abs=1)


@pytest.mark.slow
def test_csv_and_events_say_the_same_as_the_table() -> None:
    done = bench("--policy", "window", "--context", "100", "--kv-budget", "64", "-o", "csv", "-q")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["policy"], row["context"], row["kv_budget_tokens"]) for row in rows] == [("window", "100", "64")]
    assert len(rows[0]["decode_ms_samples"].split()) == 6


def test_what_cannot_run_is_refused_beforehand() -> None:
    refused = bench("--policy", "full", "--context", "300", "--kv-budget", "64")
    assert refused.returncode == 4
    assert "never evicts" in refused.stderr
    assert refused.stdout == ""


def test_the_grid_has_every_combination_and_one_row_for_what_never_evicts() -> None:
    cells = grid(Request(), [STOCK, "full", "window", "h2o"], [100, 200], ["64", "25%"], ["none"], 4, 1)
    found = [(cell.policy, cell.context, cell.request.kv_budget) for cell in cells if cell.context == 100]
    assert found == [
        (STOCK, 100, "auto"), ("full", 100, "auto"), ("window", 100, "64"), ("window", 100, "25%"), ("h2o", 100, "64"),
        ("h2o", 100, "25%"),
    ]  # fmt: skip
    assert len(cells) == 12
    with pytest.raises(UsageError, match="twice"):
        grid(Request(), ["h2o", "h2o"], [100], ["64"], ["none"], 4, 1)


def test_a_decoded_token_reads_decoder_and_head_but_one_row_of_the_table() -> None:
    tiny = llama()
    all_of_it = sum(each.nbytes for each in tiny.model.parameters())
    assert read_bytes(tiny.family) == all_of_it - tiny.text.embed_tokens.weight.nbytes
    packed = tiny.text.layers[0].mlp.down_proj
    weight = packed.weight.detach()
    del packed.weight
    packed.register_buffer("qweight", weight)  # as AWQ and GPTQ have it
    assert read_bytes(tiny.family) == all_of_it - tiny.text.embed_tokens.weight.nbytes


def test_turning_back_gives_the_key_again() -> None:
    rope, keys = Rope(llama().text.rotary_emb), torch.randn(1, 2, 600, 16)
    rotation = rope.span(0, 600, keys)
    turned = rotate(keys, rotation)
    torch.testing.assert_close(rotate_(turned.clone(), inverse(rotation)), keys, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rotate_(keys.clone(), rotation), turned)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("make", [llama, qwen2_vl])
@pytest.mark.parametrize("name", ["streaming-llm", "h2o"])
def test_turned_keys_stay_what_turning_the_kept_ones_gives(make, name: str) -> None:
    """After a hundred compactions the stored keys still are the unrotated ones at their places."""
    tiny = make()
    tiny.use(NAME)
    turned, plain = (tiny.new_cache(policies.build(name), 40, 8) for _ in range(2))
    for layer in plain.layers:
        layer.store_rotated = False
    for number in range(140):
        part = tiny.text_chunk(random_ids(1, seed=number), number)
        for cache in (turned, plain):
            forward(tiny.text, cache, part)
    for ours, theirs in zip(turned.layers, plain.layers, strict=True):
        assert ours.numbering.rotated
        assert not theirs.numbering.rotated
        assert (ours.positions == theirs.positions).all()
        torch.testing.assert_close(ours.rotated_keys(), theirs.rotated_keys(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", policies.names())
def test_all_lengths_between_two_compactions_fit_the_graphs(name: str) -> None:
    """Else they would be captured and thrown away for ever."""
    assert policies.build(name).evict_at_least(1 << 20) < MAX_GRAPHS


BOUNDED = [name for name in policies.names() if policies.find(name).bounded]


def agree(tiny: Tiny, policy: str, device: str, dtype: torch.dtype, captures: bool = True, bits: str = "16") -> None:
    """A prompt, an answer in captured steps beside an eager one, and both again."""
    tiny.model.to(device, dtype)
    tiny.use(NAME)
    eager, captured = (tiny.family.new_cache(policies.build(policy), 96, 32, KVBits.parse(bits)) for _ in range(2))
    decoder = Decoder(tiny.text, captured)
    decoder.capturing = True
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    position, wanted, found = 0, [], []
    for turn in range(2):
        for part in tiny.text_chunk(random_ids(120, seed=turn), position).split(32):
            forward(tiny.text, eager, part)
            forward(tiny.text, captured, part)
        position += 120
        for cache in (eager, captured):
            cache.policy.after_prefill(cache.managed)
            for layer in cache.with_slots:
                layer.store.late = False  # as on CUDA
        for number in range(8):
            one = tiny.text_chunk(random_ids(1, seed=number), position)
            wanted.append(forward(tiny.text, eager, one))
            found.append(decoder.step(one))
            position += 1
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), atol=tolerance, rtol=1e-2)
    assert bool(decoder.graphs) == decoder.capturing == captures
    for mine, theirs in zip(captured.with_slots, eager.with_slots, strict=True):
        assert mine.counts == theirs.counts
        assert torch.equal(mine.positions, theirs.positions)
        for name in mine.policy.buffers:
            torch.testing.assert_close(mine.buffer(name), theirs.buffer(name), atol=tolerance, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOUNDED)
def test_captured_graphs_and_eager_steps_agree(name: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for bits in ("16", "8", "4"):
        agree(llama(), name, "cuda", dtype, bits=bits)
    assert FusedAttention.works, "a warning says why not"


PAIRS = [
    (name, make, dtype)
    for number, name in enumerate(BOUNDED)
    for make, dtype in zip([llama, qwen2_vl], alternating([torch.float32, torch.bfloat16], number), strict=True)
]
"""Every policy with both models and both dtypes, every model with both dtypes, but not all three with one another."""


@pytest.mark.usefixtures("inference", "taped")
@pytest.mark.parametrize(("name", "make", "dtype"), PAIRS)
def test_what_a_graph_would_record_agrees_with_eager_steps(name: str, make, dtype: torch.dtype) -> None:
    """On any machine: addresses, numbers and order of the kernels are those of every later step of the same shape."""
    agree(make(), name, "cpu", dtype)


@pytest.mark.usefixtures("inference", "taped")
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_family_can_be_captured(make) -> None:
    agree(make(), "inf-mllm", "cpu", torch.float32)


@pytest.mark.usefixtures("inference", "taped")
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, make, dtype in PAIRS if make is llama])
def test_a_step_that_cannot_be_captured_runs_as_before(name: str, dtype: torch.dtype, caplog) -> None:
    """The failure comes behind the last layer: all of them were counted and written to by then."""
    caplog.set_level("INFO")
    tiny = llama()
    tiny.text.norm.register_forward_hook(lambda module, inputs, out: out.clamp(max=out.max().item()))
    agree(tiny, name, "cpu", dtype, captures=False)
    assert "without CUDA graphs" in caplog.text


@pytest.mark.usefixtures("inference", "taped")
def test_steps_are_captured_anew_once_a_session_was_loaded(tmp_path: Path) -> None:
    """What was saved comes into new memory, which older graphs know nothing of."""
    tiny = llama().use(NAME)
    fresh, used = (Session(tiny.family, policies.build("inf-mllm", ["window=8"]), 48, 16) for _ in range(2))
    fresh.feed(tiny.text_chunk(random_ids(90)))
    session_file.save(fresh, tmp_path / "state.edge")
    used.feed(tiny.text_chunk(random_ids(90, seed=2)))
    used.decoder.capturing = True
    for token in range(6):
        used.step(token)
    assert used.decoder.replayed
    session_file.load(used, tmp_path / "state.edge")
    for token in range(20):
        torch.testing.assert_close(used.step(token), fresh.step(token), atol=1e-5, rtol=1e-3)


def test_help_starts_without_the_heavy_libraries() -> None:
    code = "import sys; from edgemllm.cli import main; print([m for m in ('torch', 'transformers', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
