"""Loading refuses what is damaged, and takes hardly more host memory than the weights: on a Jetson most of what there is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.models import loading
from edgemllm.models.chat import Sampling
from edgemllm.models.quantisation import quantisation_of
from edgemllm.models.random_weights import byte_tokenizer
from edgemllm.policies.full import Full
from edgemllm.session import Session

PEAK = """
import json, sys, threading, time
from edgemllm.models import loading

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

loading.load(loading.locate("demo"), sys.argv[2])  # what the libraries themselves take
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
family = loading.load(loading.locate(sys.argv[1]), sys.argv[2], "bfloat16")
done = True
watcher.join()
print(json.dumps({"peak": peak - before, "after": anonymous() - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 134 million bfloat16 parameters in shards, 268 MB, its text layers 201 MB of them."""
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=16,
        vocab_size=16384, max_position_embeddings=1024,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="100MB")
    byte_tokenizer(config).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see anonymous memory")
@pytest.mark.parametrize("quant", ["none", "nf4", "int4"])
def test_host_memory_peaks_near_the_weights(folder: Path, quant: str) -> None:
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", PEAK, str(folder), quant], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Unquantised weights stay in the mapped file. Quantised ones are made layer by layer: the largest matrix in full, some
    # of it in single precision, comes on top.
    assert found["peak"] < (0.1 if quant == "none" else 0.5) * stored


Tensors = dict[str, torch.Tensor]


def changed(folder: Path, change: Callable[[Tensors], object]) -> Path:
    """The demo model in `folder`, its tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(loading.DEMO, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if part in key]


def renamed(tensors: Tensors) -> None:
    for key in [key for key in tensors if "mlp.up_proj" in key]:
        tensors[key.replace("up_proj", "w3")] = tensors.pop(key)


def reshaped(tensors: Tensors) -> None:
    tensors["language_model.model.norm.weight"] = torch.ones(7)


@pytest.mark.parametrize(
    ("change", "says", "quant"),
    [
        (without("language_model"), r"lacks \d\d of 148 tensors, first ", "none"),
        (without("layers.3.mlp.down_proj.weight"), "lacks 1 of 148 tensors, first .*layers.3.mlp.down_proj.weight", "nf4"),
        (renamed, "lacks 6 of 148 tensors.*6 of other names, first .*mlp.w3", "none"),
        (without("layers.3.mlp.down_proj.weight"), "lacks 1 of 148 tensors, first .*layers.3.mlp.down_proj.weight", "int4"),
        (reshaped, "1 tensors do not have the shapes of config.json, first .*norm.weight: 7 instead of ", "nf4"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(
    change: Callable[[Tensors], object], says: str, quant: str, tmp_path: Path
) -> None:
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    with pytest.raises(MissingError, match=says):
        loading.load(loading.locate(str(changed(tmp_path / "model", change))), quant)


def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] -= 1
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingError, match=r"layers\.5, a block more"):
        loading.load(loading.locate(str(folder)))


@pytest.mark.parametrize(("dtype", "value"), [("float32", float("nan")), ("float32", float("inf")), ("float16", 6e4)])
def test_weights_that_are_no_numbers_are_named_instead_of_an_empty_answer(dtype: str, value: float, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["language_model.model.layers.2.mlp.down_proj.weight"][...] = value

    family = loading.load(loading.locate(str(changed(tmp_path / "model", spoil))), "none", dtype)
    kind: type[EdgeError] = UsageError if dtype == "float16" else MissingError
    for temperature in (0.0, 1.0):
        with pytest.raises(kind, match="overflows in float16" if dtype == "float16" else r"layers\.2\.mlp\.down_proj"):
            "".join(Session(family, Full(), None).ask("What is it?", Sampling(4, temperature)))


def test_a_checkpoint_that_was_quantised_beforehand_is_complete(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    family = loading.load(loading.locate("demo"), "nf4")
    shutil.copytree(loading.DEMO, tmp_path / "model")
    family.model.save_pretrained(tmp_path / "model")
    again = loading.load(loading.locate(str(tmp_path / "model")))
    assert quantisation_of(again.model) == "nf4"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("tokenizer.json", '{"version": "1.0", ', "tokenizer.json cannot be read"),
        ("tokenizer.json", "[]", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "not JSON", "tokenizer_config.json cannot be read"),
        ("generation_config.json", "not JSON", "generation_config.json is not complete JSON"),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja cannot write this turn"),
        ("chat_template.jinja", "hello", "chat_template.jinja cannot write this turn"),
        ("config.json", "not JSON", "config.json is not complete JSON"),
        ("config.json", "[1]", "config.json is not complete JSON"),
        ("config.json", "{}", "config.json names no model_type"),
        ("num_hidden_layers", -1, "num_hidden_layers"),
        ("num_hidden_layers", 10**9, "num_hidden_layers = 1000000000"),
        ("num_attention_heads", 0, "config.json"),
        ("num_key_value_heads", 5, "heads of keys"),
        ("hidden_size", "abc", "config.json"),
    ],
)
def test_a_damaged_side_file_is_named(file: str, text: str | int, says: str, tmp_path: Path) -> None:
    folder = shutil.copytree(loading.DEMO, tmp_path / "model")
    if not file.endswith((".json", ".jinja")):
        found = json.loads((folder / "config.json").read_text())
        found["text_config"][file] = text
        found["text_config"].pop("layer_types", None)
        file, text = "config.json", json.dumps(found)
    (folder / file).write_text(str(text))
    with pytest.raises(MissingError, match=says):
        "".join(Session(loading.load(loading.locate(str(folder))), Full(), None).ask("hi", Sampling(1)))


def test_an_index_of_weights_names_files_of_its_folder_only(tmp_path: Path) -> None:
    folder = shutil.copytree(loading.DEMO, tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../../../etc/passwd"}}))
    with pytest.raises(MissingError, match="no file of its folder"):
        loading.locate(str(folder))
