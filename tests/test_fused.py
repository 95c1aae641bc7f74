"""Triton's kernels for codes, without a GPU: run by its interpreter, compiled for boards, and done without where they fail.

What surrounds them needs no Triton: `unpacked` computes the same.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import unpacked
from tape import taped  # noqa: F401
from test_bench import agree
from test_kv_bits import FEWER, coded_by, feed, session
from tiny import gemma4_text, gpt_neox, llama, qwen2_vl, smollm3, yarn_llama

from edgemllm.cache import fused_attention
from edgemllm.cache.bits import Channels, quantise
from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.fused_attention import FusedAttention

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KINDS = (qwen2_vl, gpt_neox, smollm3, yarn_llama, gemma4_text)
"""Models that differ in what is rotated, by which angles, or in the layers that attend to everything."""


def decoded(
    make, bits: str, way, monkeypatch, dtype: torch.dtype = torch.float32, count: int = 4, device: str = "cpu"
) -> torch.Tensor:
    """Logits of tokens after many more than fit, with a policy that watches, and codes read in a `way`."""
    stream = session(make, bits, "h2o", 64, device, dtype)
    feed(stream, 90)
    with monkeypatch.context() as patch:
        patch.setattr("edgemllm.cache.attention.coded", coded_by(way))
        return torch.cat([stream.step(token) for token in range(1, count + 1)]).float()


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Blocks are unpacked and multiplied in the model's dtype, kernels compute in float32."""
    tolerance = {"atol": 2e-4, "rtol": 1e-3} if dtype is torch.float32 else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(found, wanted, **tolerance)


@pytest.fixture
def unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of Triton's kernels."""
    monkeypatch.setattr(fused_attention, "kernels", lambda: unpacked)


@pytest.mark.usefixtures("inference", "unpacking")
@pytest.mark.parametrize(
    ("make", "bits"), [*((make, "4") for make in KINDS), *((llama, bits) for bits in FEWER), (llama, "k4v8")]
)
def test_kernels_are_given_what_blocks_read(make, bits: str, monkeypatch) -> None:
    found = [decoded(make, bits, way, monkeypatch) for way in (FusedAttention, BlockAttention)]
    close(*found, torch.float32)
    assert FusedAttention.works


@pytest.mark.usefixtures("inference", "unpacking", "taped")
@pytest.mark.parametrize(("make", "policy"), [(llama, "random"), (qwen2_vl, "h2o")])
def test_what_a_graph_would_record_agrees_with_eager_steps(make, policy: str, monkeypatch) -> None:
    """Kernels are launched with addresses and numbers that hold for every later step of the same shape."""
    monkeypatch.setattr("edgemllm.cache.attention.coded", coded_by(FusedAttention))
    agree(make(), policy, "cpu", torch.float32, bits="4")
    assert FusedAttention.works


@needs_triton
def test_kernels_compute_what_codes_stand_for() -> None:
    """In another process, as Triton decides when it is imported whether it compiles or interprets."""
    cases = Path(__file__).with_name("fused_cases.py")
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@needs_triton
@pytest.mark.parametrize(("arch", "bits"), [(87, 4), (90, 8)])
def test_kernels_compile_for_cards_and_boards(arch: int, bits: int, monkeypatch, tmp_path: Path) -> None:
    """To machine code of an Orin and an H100, for heads that are rotated in part and keys that were evened."""
    import triton
    from triton.backends.compiler import GPUTarget

    from edgemllm.cache import fused_kernels

    driver = SimpleNamespace(
        get_current_device=lambda: arch,  # each has a memory of its own for what is compiled
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )
    compiled, run = [], triton.JITFunction.run

    def only_compiles(*given: Any, warmup: bool, **named: Any) -> None:
        compiled.append(run(*given, warmup=True, **named))

    monkeypatch.setattr(triton.JITFunction, "run", only_compiles)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = torch.randn(1, 2, 70, 80)
    channels = Channels.of(rows.bfloat16())
    codes, angles, query = quantise(rows, bits), torch.zeros(1, 1, 70, 16), torch.randn(2, 2, 80)
    fused_kernels.scores(*codes, channels.width, channels.mean, angles, angles, query, torch.empty(2, 2, 70), 1, 68)
    fused_kernels.weighted(*codes, torch.randn(2, 2, 70), 80, 1, 68)
    assert [bool(kernel.asm["cubin"]) for kernel in compiled] == [True, True]


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("step", ["scores", "weighted"])
def test_where_kernels_cannot_be_compiled_codes_are_unpacked_in_blocks(step: str, caplog, monkeypatch) -> None:
    def fails(*given: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    working = {"scores": unpacked.scores, "weighted": unpacked.weighted}
    monkeypatch.setattr(FusedAttention, "works", True)
    monkeypatch.setattr(fused_attention, "kernels", lambda: SimpleNamespace(**{**working, step: fails}))
    found = [decoded(llama, "8", way, monkeypatch) for way in (FusedAttention, BlockAttention)]
    close(*found, torch.float32)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "as Triton fails here: RuntimeError: Failed to find C compiler." in told
    assert "\n" not in told
    assert not FusedAttention.works, "not attempted again"


@pytest.mark.usefixtures("inference")
def test_memory_that_a_kernel_lacks_is_no_reason_to_do_without_it(monkeypatch) -> None:
    def fails(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused_attention, "kernels", lambda: SimpleNamespace(scores=fails))
    with pytest.raises(torch.OutOfMemoryError):
        decoded(llama, "8", FusedAttention, monkeypatch)
    assert FusedAttention.works
