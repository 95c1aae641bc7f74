"""Checkpoints that others have quantised: AWQ, GPTQ, fp8, compressed-tensors and torchao, as transformers reads them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quantised_files import METHODS, quantise
from tiny import Tiny, llama, llava_onevision, random_ids

from edgemllm.errors import UsageError
from edgemllm.launch import prepare
from edgemllm.models import loading
from edgemllm.models.prequantised import PACKAGES, reading
from edgemllm.models.quantisation import quantisation_of
from edgemllm.models.weights import fingerprint
from edgemllm.planning.request import Request
from edgemllm.policies.full import Full

MODELS = {"llama": llama, "llava_onevision": llava_onevision}
EXACT, HALF = {"atol": 2e-5, "rtol": 1e-4}, {"atol": 1e-3, "rtol": 1e-2}


def readable(method: str) -> Any:
    """A method whose packages are not here is skipped."""
    missing = [package for package in PACKAGES[method] if importlib.util.find_spec(package) is None]
    return pytest.param(method, marks=pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed"))


READABLE = [readable(method) for method in (*METHODS, "torchao")]


def checkpoint(method: str, model: str, folder: Path) -> Path:
    """A tiny checkpoint, quantised beforehand."""
    tiny = MODELS[model]()
    plain, made = folder / "plain", folder / method
    tiny.model.save_pretrained(plain)
    tiny.family.tokenizer.save_pretrained(plain)
    untouched = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    if method == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        recipe = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=untouched)
        auto = getattr(transformers, tiny.family.auto_class)
        auto.from_pretrained(plain, quantization_config=recipe, device_map={"": "cpu"}).save_pretrained(made)
        tiny.family.tokenizer.save_pretrained(made)
    else:
        patterns = [f"re:{name}.*" for name in untouched]
        quantise(plain, made, method, patterns if method == "compressed-tensors" else untouched)
    return made


def held_bytes(model: Any) -> int:
    """Bytes of all parameters and the buffers beside them; those of torchao are made of several tensors."""
    found = 0
    buffers = [value for name, value in model.named_buffers() if "inv_freq" not in name]
    for tensor in [*model.parameters(), *buffers]:
        parts = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else None
        found += sum(getattr(tensor, part).nbytes for part in parts) if parts else tensor.nbytes
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", READABLE)
def test_logits_are_the_stock_models_with_the_same_weights(method: str, model: str, tmp_path: Path) -> None:
    folder = checkpoint(method, model, tmp_path)
    found = loading.locate(str(folder))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        family = loading.load(found)
    assert not printed.getvalue()  # answers go there
    with reading(found.config, "cpu") as options:
        auto = getattr(transformers, family.auto_class)
        stock = auto.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **options).eval()
    ids = random_ids(40)
    with torch.inference_mode():
        ours = Tiny(model=family.model, family=family)
        for size in (40, 7, 1):
            logits = ours.run(ours.text_chunk(ids), size, Full())
            near = HALF if method == "awq" else EXACT  # gptqmodel multiplies AWQ in float16, whatever the dtype
            torch.testing.assert_close(logits, stock(input_ids=ids, use_cache=False).logits, **near)
    assert quantisation_of(family.model) == (found.stored_as or "none")
    assert len(fingerprint(family.model)) == 64  # a saved session knows its weights by it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", READABLE)
def test_the_plan_is_what_lies_in_memory_after_the_first_token(method: str, dtype: str, tmp_path: Path) -> None:
    folder = checkpoint(method, "llama", tmp_path)
    launch = prepare(Request(str(folder), dtype=dtype, kv_budget="64"))
    family = launch.open().family
    ours = Tiny(model=family.model, family=family)
    with torch.inference_mode():
        ours.run(ours.text_chunk(random_ids(8)), 8, Full())
    assert launch.quant == (launch.facts.stored_as or "none")
    assert launch.plan.weights_bytes == pytest.approx(held_bytes(family.model), rel=0.05)


@pytest.mark.parametrize("method", READABLE)
def test_what_is_quantised_is_not_quantised_again(method: str, tmp_path: Path) -> None:
    folder = checkpoint(method, "llama", tmp_path)
    with pytest.raises(UsageError, match=f"already quantised with {method}"):
        prepare(Request(str(folder), quant="int8"))


def test_a_method_that_was_never_tried_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = checkpoint("fp8", "llama", tmp_path)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"fp8"', '"hqq"'))
    with pytest.raises(UsageError) as error:
        loading.locate(str(folder))
    assert "quantised with hqq, which was never tried" in error.value.message
    assert "awq" in error.value.hint


def test_a_method_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("gptq", "llama", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        loading.load(loading.locate(str(folder)))
    assert "quantised with gptq" in error.value.message
    assert "pip install optimum gptqmodel" in error.value.hint


def test_weights_that_do_not_suit_their_method_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = checkpoint("fp8", "llama", tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["weight_block_size"] = "many"
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="its weights in fp8 cannot be read here"):
        loading.load(loading.locate(str(folder)))
