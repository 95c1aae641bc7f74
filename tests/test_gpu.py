"""What only a CUDA device can show: `scripts/gpu_check` runs these; elsewhere they are skipped."""

from __future__ import annotations

import pytest
import torch
from media import both, footage, picture
from test_fused import close, decoded
from test_kv_bits import FEWER
from test_model_spec import real_bytes
from tiny import MODELS, VISION_MODELS, qwen2_5_vl, random_ids

from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.fused_attention import FusedAttention
from edgemllm.models import loading
from edgemllm.models.chat import Sampling
from edgemllm.models.spec import ModelSpec
from edgemllm.policies.full import Full
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("inference"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_text_equals_the_processor(make, dtype: torch.dtype) -> None:
    """As close to the exact logits as the stock model on the same device."""
    tiny, ids = make(), random_ids(40)
    exact = tiny.stock(input_ids=ids)
    tiny.model.to("cuda", dtype)
    stock = (tiny.stock(input_ids=ids.cuda()).float().cpu() - exact).abs().max()
    for size in (100, 7, 1):
        ours = (tiny.run(tiny.text_chunk(ids), size, Full()).float().cpu() - exact).abs().max()
        assert ours <= 2 * stock + (1e-3 if dtype is torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("make", VISION_MODELS, ids=lambda make: make.__name__)
def test_pictures_equal_the_processor(make) -> None:
    tiny = make()
    frames = footage(3) if tiny.family.video_token else []
    want, _ = both(tiny, picture(1), frames)
    tiny.model.to("cuda")
    from media import chunk_of

    chunk, _ = chunk_of(tiny.use("edgemllm"), picture(1), frames)
    torch.testing.assert_close(tiny.run(chunk, 7, Full()).cpu(), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", FEWER)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_codes_are_read_by_fused_kernels_as_in_blocks(make, bits: str, dtype: torch.dtype, monkeypatch) -> None:
    """Eagerly; in captured steps too: test_bench.py."""
    pytest.importorskip("triton")
    found = [decoded(make, bits, way, monkeypatch, dtype, device="cuda") for way in (FusedAttention, BlockAttention)]
    close(*found, dtype)
    assert FusedAttention.works, "a warning says why not"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_random_weights_take_what_was_planned_and_the_cache_stays_in_its_budget(quant: str) -> None:
    pytest.importorskip("bitsandbytes")
    config = qwen2_5_vl().model.config
    config.get_text_config().vocab_size = 400  # room for a token a byte
    family = loading.load(loading.Checkpoint("random", None, config), quant, "bfloat16", "cuda")
    assert real_bytes(family.model) == pytest.approx(ModelSpec.from_config(config).weights_bytes(quant, "bfloat16"), rel=0.05)
    session = Session(family, InfMLLM(), 256, chunk=32)
    session.watch(footage(40))
    assert list(session.ask("What?", Sampling(max_tokens=8)))
    kv = session.kv()
    assert kv["evicted_tokens"] > 0
    assert kv["bytes"] <= kv["budget_bytes"]
