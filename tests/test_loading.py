"""Loading takes hardly more host memory than the loaded weights: on a Jetson they are most of what there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgemllm.models.random_weights import byte_tokenizer

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
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_host_memory_peaks_near_the_weights(folder: Path, quant: str) -> None:
    if quant != "none":
        pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", PEAK, str(folder), quant], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Unquantised weights stay in the mapped file. Quantised ones are made layer by layer: the largest matrix in full, some
    # of it in single precision, comes on top.
    assert found["peak"] < (0.1 if quant == "none" else 0.5) * stored
