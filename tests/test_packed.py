"""Weights packed for a processor: the model they give is the one of the weights they stand for, within bfloat16's rounding."""

from __future__ import annotations

import pytest
import torch
from media import picture
from tiny import MODELS, VISION_MODELS, Tiny, random_ids

from edgemllm.errors import UsageError
from edgemllm.models import packed
from edgemllm.models.packed import Int4Linear, Int8Linear, PackedEmbedding, PackedLinear
from edgemllm.planning.decision import plan_only
from edgemllm.planning.request import Request
from edgemllm.policies.full import Full

pytestmark = pytest.mark.usefixtures("inference")
QUANTS = {"int8": Int8Linear, "int4": Int4Linear}
ROUNDING = 0.02
"""Of a model of three layers whose products go in and out in 8 bits of mantissa, against its logits' spread."""


def rounding(full: Tiny, ids: torch.Tensor, want: torch.Tensor) -> float:
    """What may be off: `ROUNDING`, or half more than the stock model is in bfloat16 (Gemma 4 does not scale its products)."""
    full.model.to(torch.bfloat16)
    return max(ROUNDING, 1.5 * off(full.stock(input_ids=ids).float(), want))


def pair(make, quant: str) -> tuple[Tiny, Tiny]:
    """A packed model, and the same architecture with the weights that the packed ones stand for."""
    small, full = make(), make()
    packed.pack(small.model, quant, torch.float32)
    for name, module in small.model.named_modules():
        if isinstance(module, PackedLinear):
            full.model.get_submodule(name).weight.data = module.dense().float()
    for name, module in small.model.named_modules():  # afterwards, as a tied head is the same table, rounded
        if isinstance(module, PackedEmbedding):
            table = full.model.get_submodule(name).weight
            table.data = (module.weight.float() * module.scales[:, None].float()).view(table.shape)
    assert isinstance(small.text.get_input_embeddings(), PackedEmbedding)
    assert not any(isinstance(module, torch.nn.Embedding) for module in small.text.modules())
    return small, full


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / (want - want.mean()).norm())


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_packed_model_is_that_of_its_dequantised_weights(make, quant: str) -> None:
    small, full = pair(make, quant)
    ids = random_ids(60)
    want = full.run(full.text_chunk(ids), 100, Full())
    allowed = rounding(full, ids, want)
    for size in (100, 1, 7):  # unpacked for a prompt, packed for a token or a few
        assert off(small.run(small.text_chunk(ids), size, Full()), want) < allowed


@pytest.mark.parametrize("make", VISION_MODELS, ids=lambda make: make.__name__)
def test_what_a_packed_model_sees_is_untouched(make) -> None:
    small, full = pair(make, "int4")
    mine, theirs = (tiny.family.image(picture(1), 0) for tiny in (small, full))
    assert off(mine.embeds, theirs.embeds) < 1e-5
    assert not any(isinstance(module, PackedLinear) for name, module in small.model.named_modules() if "vision" in name)


@pytest.mark.parametrize("rows", [1, 17, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(97, 64), (64, 96), (192, 640)])
@pytest.mark.parametrize("quant", QUANTS)
def test_a_packed_product_is_close_to_the_full_one(quant: str, outputs: int, inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs)
    small, x = QUANTS[quant](linear.weight, linear.bias), torch.randn(2, rows, inputs)
    assert off(small.dense().float(), linear.weight) < {"int8": 0.01, "int4": 0.1}[quant]
    assert off(small(x), x @ small.dense().float().T + linear.bias) < 0.01
    assert QUANTS[quant](linear.weight)(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(small(x.mT.contiguous().mT), small(x))  # the same numbers in another order in memory


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("quant", "outputs", "inputs"),
    [("int8", 97, 64), ("int8", 64, 72), ("int8", 192, 640), ("int4", 97, 64), ("int4", 192, 640)],
)
def test_one_row_is_multiplied_by_either_way(
    quant: str, outputs: int, inputs: int, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = pytest.importorskip("edgemllm.loops.rows", reason="needs the extra cpu") if compiled else None
    monkeypatch.setattr(packed, "_loops", lambda: loops)
    monkeypatch.setattr("edgemllm.loops.compiled.VALUES_EACH", 1024)  # in two parts
    linear, threads = torch.nn.Linear(inputs, outputs, dtype=dtype), torch.get_num_threads()
    small, x = QUANTS[quant](linear.weight, linear.bias), torch.randn(1, inputs, dtype=dtype)
    try:
        torch.set_num_threads(2)
        got = small(x)
    finally:
        torch.set_num_threads(threads)
    assert got.dtype == dtype
    assert off(got.float(), x.float() @ small.dense().float().T + linear.bias.float()) < 0.01


@pytest.mark.parametrize("kind", ["usual", "one far out", "all alike", "nothing", "no number"])
def test_one_row_of_4_bits_is_multiplied_by_a_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pytest.importorskip("edgemllm.loops.rows", reason="needs the extra cpu")
    monkeypatch.setattr(packed, "_loops", lambda: rows)
    if packed._layout() != (rows.BLOCK, True):
        pytest.skip("torch packs 4 bits in another way on this processor")
    weight, x, out = torch.randn(128, 96), torch.randn(96), torch.empty(128)
    weight[0, :31], weight[0, 31] = -1, 1  # the largest sum without its sign: almost all codes are 0, which stands for -8
    if kind == "one far out":
        x[5] = 1000
    if kind in ("all alike", "nothing"):
        x[:] = kind == "all alike"
    if kind == "no number":
        x[7] = torch.nan
    small = Int4Linear(weight, torch.randn(128))
    rows.multiply(x.numpy(), small.loop(), out.numpy(), 0, 128)
    want = x @ small.dense().float().T + small.bias
    assert off(out, want) < 0.005 if kind != "no number" else out.isnan().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quant", QUANTS)
def test_layers_that_are_joined_give_what_they_gave_and_share_memory(quant: str, bias: bool) -> None:
    parts = [QUANTS[quant](torch.randn(rows, 128), torch.randn(rows) if bias else None) for rows in (192, 64, 64)]
    inputs = [torch.randn(rows, 128) for rows in (1, 5, 100)]
    before = [[part(x) for part in parts] for x in inputs]
    taken = sum(part.weight.nbytes + part.scales.nbytes for part in parts)
    whole = parts[0].join(parts[1:])
    assert whole is not None
    for x, want in zip(inputs, before, strict=True):
        torch.testing.assert_close(list(whole(x).split([192, 64, 64], -1)), want)
        torch.testing.assert_close([part(x) for part in parts], want)
    storages = [tensor.untyped_storage() for each in (whole, *parts) for tensor in (each.weight, each.scales)]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) == taken


def test_layers_that_do_not_fit_together_stay_apart() -> None:
    whole = Int4Linear(torch.randn(64, 64))
    biased = Int4Linear(torch.randn(64, 64), torch.ones(64))
    for other in (Int8Linear(torch.randn(64, 64)), Int4Linear(torch.randn(60, 64)), biased):
        assert whole.join([other]) is None


def test_a_processor_without_bfloat16_multiplies_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    small, x = Int4Linear(torch.randn(64, 64)), torch.randn(100, 64)
    want = small(x)
    monkeypatch.setattr(packed, "_computes_half", lambda: False)
    assert off(small(x), want) < 0.01


def test_codes_of_four_bits_are_found_again_where_a_byte_holds_neighbouring_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As processors without AVX pack them, whose products cannot be tried here."""
    codes = torch.randint(0, 16, (64, 64), dtype=torch.int32)

    def convert(codes: torch.Tensor, _: int) -> torch.Tensor:
        pairs = codes.view(-1, 16, codes.shape[1]).transpose(1, 2).unflatten(2, (8, 2)).to(torch.uint8)
        return (pairs[..., 1] << 4 | pairs[..., 0]).reshape(len(codes), -1)

    monkeypatch.setattr(packed.ops, "_convert_weight_to_int4pack_for_cpu", convert)
    packed._layout.cache_clear()
    small = Int4Linear(torch.zeros(64, 64))
    small.weight.data, small.scales.data[..., 0] = convert(codes, 1), 1
    small.scales.data[..., 1] = 8
    assert torch.equal(small.dense().int(), codes)
    packed._layout.cache_clear()


def test_rows_that_are_not_whole_groups_take_8_bits() -> None:
    small, x = packed.packed(torch.nn.Linear(72, 64), "int4"), torch.randn(3, 72)
    assert isinstance(small, Int8Linear)
    assert off(small(x), x @ small.dense().float().T + small.bias) < 0.01


def test_4_packed_bits_are_refused_on_cuda_in_one_line() -> None:
    with pytest.raises(UsageError, match="int4 is packed for processors, and this runs on cuda") as error:
        plan_only(Request("random:qwen2.5-vl-3b", profile="orin-nano-8gb", quant="int4"))
    assert error.value.hint == "--quant nf4"


def test_a_large_model_on_a_cpu_is_packed_by_itself_and_a_small_one_is_left_alone() -> None:
    made = plan_only(Request("random:qwen2.5-vl-3b", profile="cpu"))
    assert (made.quant, made.describe()["head_quant"]) == ("int4", "int8")
    whole = plan_only(Request("random:qwen2.5-vl-3b", profile="cpu", quant="none"))
    assert made.plan.weights_bytes < 0.5 * whole.plan.weights_bytes
    assert plan_only(Request("demo", profile="cpu")).quant == "none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cache_that_moves_no_slot_rotates_keys_once(dtype: torch.dtype) -> None:
    tiny, ids = MODELS[1](), random_ids(40)
    tiny.model.to(dtype)
    kinds = ((Full(), None, True), (Full(positions="original"), 64, True), (Full(), 64, dtype.itemsize == 4))
    for policy, budget, once in kinds:
        tiny.run(tiny.text_chunk(ids), 10, policy, budget)
        assert all(layer.numbering.rotated is once for layer in tiny.cache.layers)
