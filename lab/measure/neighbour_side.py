"""One side of neighbours.py: reads a context, says how fast that went, then decodes as many tokens as each line asks for."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from typing import Any, Protocol

import torch

from edgemllm import policies
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session
from lab.measure.sides import STOCK, Side, perplexity


class Contender(Protocol):
    """What takes turns."""

    def read(self, ids: list[int]) -> float:
        """Take the context in, and return tokens per second."""

    def decode(self, tokens: int) -> float:
        """Return ms per token, their mean."""

    def perplexity(self, text: str, tokens: int) -> float | None:
        """Return that of a text's first tokens; None where it cannot be known."""


class Torch:
    """Our session, or transformers' own cache, on weights read by us."""

    def __init__(self, about: dict[str, Any]) -> None:
        torch.set_num_threads(about["threads"])
        name = about["side"]
        side, _, policy = name.partition("@")
        quant, dtype = ("none", "float32") if side == STOCK else side.split("/")
        self.family: ModelFamily = loading.load(loading.locate(about["model"]), quant, dtype)
        self.chunk = about["chunk"]
        self.side = Side(STOCK if side == STOCK else policy or "streaming-llm", self.family, about["budget"], self.chunk)

    def read(self, ids: list[int]) -> float:
        began = time.perf_counter()
        for start in range(0, len(ids), self.chunk):
            self.side.feed(ids[start : start + self.chunk])
        return len(ids) / (time.perf_counter() - began)

    def decode(self, tokens: int) -> float:
        return statistics.fmean(self.side.timed([7]) for _ in range(tokens))

    def perplexity(self, text: str, tokens: int) -> float | None:
        ids = self.family.tokenize(text)[:tokens]
        return perplexity(Session(self.family, policies.build("full"), None, self.chunk), ids)


class Llama:
    """llama.cpp's server inside this process; its cache keeps everything."""

    def __init__(self, about: dict[str, Any]) -> None:
        import xllamacpp

        self.file = about["side"].partition("@")[2] or about["model"]
        asked = xllamacpp.CommonParams()
        asked.model.path, asked.n_ctx, asked.n_parallel = self.file, about["context"] + 1024, 1
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = about["threads"]
        self.server = xllamacpp.Server(asked)
        self.ids: list[int] = []

    def _asked(self, tokens: int) -> dict[str, float]:
        asked = {"prompt": self.ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
        found: dict[str, float] = self.server.handle_completions(asked)["timings"]
        return found

    def read(self, ids: list[int]) -> float:
        self.ids = ids
        return self._asked(1)["prompt_per_second"]

    def decode(self, tokens: int) -> float:
        return float(self._asked(tokens)["predicted_per_token_ms"])

    def perplexity(self, text: str, tokens: int) -> float | None:
        """Return what another binding of llama.cpp gives, as this one has no probabilities of a prompt."""
        try:
            from cyllama.llama import llama_cpp
        except ImportError:
            return None
        llama_cpp.disable_logging()
        model = type("Model", (llama_cpp.LlamaModel,), {"n_vocab": property(lambda self: self.get_vocab().n_vocab)})(self.file)
        asked, batch = llama_cpp.LlamaContextParams(), llama_cpp.LlamaBatch(n_tokens=tokens, embd=0, n_seq_max=1)
        asked.n_ctx = asked.n_batch = asked.n_ubatch = tokens
        context = llama_cpp.LlamaContext(model, asked)
        ids = model.get_vocab().tokenize(text[: 16 * tokens], False, True)[:tokens]
        for place, token in enumerate(ids):
            batch.add(token, place, [0], True)
        context.decode(batch)
        scores = (torch.tensor(context.get_logits_ith(place)).log_softmax(-1) for place in range(len(ids) - 1))
        return math.exp(-statistics.fmean(float(row[token]) for row, token in zip(scores, ids[1:], strict=True)))


@torch.inference_mode()
def main() -> None:
    """Serve the turns; a line with 0 asks for the peak of memory and the perplexity, and ends."""
    about = json.loads(sys.argv[1])
    side: Contender = Llama(about) if about["side"].partition("@")[0] == "llama.cpp" else Torch(about)
    ids = torch.randint(0, 30_000, (about["context"],), generator=torch.Generator().manual_seed(0)).tolist()
    print(json.dumps(side.read(ids)), flush=True)
    for line in sys.stdin:
        tokens = int(line)
        if tokens:
            print(json.dumps(side.decode(tokens)), flush=True)
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        text = open(about["text"], encoding="utf-8").read() if about["text"] else ""
        print(json.dumps([peak, side.perplexity(text, about["text_tokens"]) if text else None]), flush=True)
        return


if __name__ == "__main__":
    main()
