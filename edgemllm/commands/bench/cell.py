"""Speed of one cell of the grid; run as a process, it reads the cell from standard input.

Time to first token includes compression. The context is random tokens: speed does not depend on what they say. Every decoded
token's milliseconds are kept. The roofline is a copy test of a second: a token cannot take less time than reading the weights
and the live KV cache takes.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgemllm.cache.attention import cache_keyword
from edgemllm.cache.decode import MAX_GRAPHS
from edgemllm.commands.bench.grid import STOCK, Cell
from edgemllm.device import memory
from edgemllm.errors import EdgeError, out_of_memory
from edgemllm.media.detail import Detail
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.packed import PackedEmbedding
from edgemllm.planning.request import Request
from edgemllm.session import Session

WARM_TOKENS = 64
COPY_BYTES = 1 << 28


@dataclass
class Sample:
    """What one repetition took, in seconds."""

    first_token: float
    prefill: float
    decode: list[float]


@torch.inference_mode()
def measure(cell: Cell) -> dict[str, Any]:
    """Load, warm up, and repeat."""
    with out_of_memory():
        launch = cell.prepare()
        session = launch.open()
        side = Stock(session.family) if cell.policy == STOCK else Ours(session)
        ids = random_ids(session.family, cell.context)
        side.once(ids[:WARM_TOKENS], 4)
        samples = [side.once(ids, cell.new_tokens) for _ in range(cell.repeat)]
        kv = side.kv()
        used = memory.report(launch.device)
        weights = read_bytes(session.family)
        read = weights + side.kv_bytes()
        bandwidth = copy_bandwidth(session.family.device, cell.copy_s)
    decode = [seconds * 1e3 for sample in samples for seconds in sample.decode]
    first = [sample.first_token * 1e3 for sample in samples]
    prefill = [cell.context / sample.prefill for sample in samples]
    typical = median(decode)
    return {
        "policy": cell.policy,
        "context": cell.context,
        "kv_budget_tokens": kv["budget_tokens"],
        "quant": launch.quant,
        "dtype": launch.dtype,
        "chunk": cell.context if cell.policy == STOCK else session.chunk,
        "ttft_ms": round(median(first), 3),
        "prefill_tps": round(median(prefill), 2),
        "decode_tps": round(1e3 / typical, 3),
        "decode_ms": {"median": round(typical, 4), "p10": round(rank(decode, 0.1), 4), "p90": round(rank(decode, 0.9), 4)},
        "decode_ms_samples": [round(each, 4) for each in decode],
        "ttft_ms_samples": [round(each, 3) for each in first],
        "prefill_tps_samples": [round(each, 2) for each in prefill],
        "roofline_share": round(read / bandwidth / typical * 1e3, 4),
        "read_bytes_per_token": read,
        "weights_bytes": weights,
        "bandwidth_bytes_per_s": round(bandwidth),
        "kv": kv,
        "memory": used,
    }


class Ours:
    """Our session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def once(self, ids: list[int], new_tokens: int) -> Sample:
        """Run a prompt and an answer of `new_tokens` after its first token."""
        session = self.session
        session.clear()
        began = now(session.family.device)
        logits = session.feed(session.family.text(ids, 0))
        fed = now(session.family.device)
        session.policy.after_prefill(session.cache.managed)
        token = int(logits.argmax(-1))
        first = now(session.family.device)
        token = warm_up(session, token)
        marks = [now(session.family.device)]
        for _ in range(new_tokens):
            token = int(session.step(token).argmax(-1))
            marks.append(now(session.family.device))
        return Sample(first - began, fed - began, differences(marks))

    def kv(self) -> dict[str, Any]:
        """Return the `KV` object."""
        return self.session.kv()

    def kv_bytes(self) -> int:
        """Return the bytes of the cache that a decoded token reads."""
        return self.session.cache.read_bytes


class Stock:
    """The same weights as transformers runs them."""

    def __init__(self, family: ModelFamily) -> None:
        from transformers import DynamicCache

        self.family = family
        multimodal = hasattr(family.model.config, "vision_config")
        family.model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"} if multimodal else "sdpa")
        self.new_cache: Any = lambda: DynamicCache(config=family.config)
        self.cache = self.new_cache()

    def once(self, ids: list[int], new_tokens: int) -> Sample:
        """Run as `Ours.once` does, with `generate`."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        marks: list[float] = []
        device = self.family.device

        class Marks(StoppingCriteria):  # type: ignore[misc]
            """Notes when each token is out."""

            def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                marks.append(now(device))
                return torch.zeros(len(input_ids), dtype=torch.bool, device=device)

        self.cache = self.new_cache()
        prompt = torch.tensor([ids], device=device)
        began = now(device)
        self.family.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=new_tokens + 1, min_new_tokens=new_tokens + 1, stopping_criteria=StoppingCriteriaList([Marks()]),
            **{cache_keyword(type(self.family.model).forward): self.cache},
        )  # fmt: skip
        return Sample(marks[0] - began, marks[0] - began, differences(marks))

    def kv(self) -> dict[str, Any]:
        """Return the `KV` object."""
        seen, size = self.cache.get_seq_length(), self.kv_bytes()
        lengths = [layer.get_seq_length() for layer in self._with_keys()]
        mean = sum(lengths) / len(lengths)
        return {
            "seen_tokens": seen, "tokens": round(mean, 1), "tokens_per_layer": lengths, "budget_tokens": None,
            "budget_bytes": None, "bytes": size, "evicted_tokens": round(seen - mean), "positions": "original",
            "bits": 16, "parts": self._parts(), "streamed": False, "state_bytes": self._state_bytes(), "managed_layers": 0,
        }  # fmt: skip

    def kv_bytes(self) -> int:
        """Return the bytes of the cache that a decoded token reads."""
        return sum(self._parts().values())

    def _parts(self) -> dict[str, int]:
        held = self._with_keys()
        keys, values = sum(layer.keys.nbytes for layer in held), sum(layer.values.nbytes for layer in held)
        return {"keys": keys, "values": values, "scales": 0, "notes": self._state_bytes()}

    def _with_keys(self) -> list[Any]:
        return [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]

    def _state_bytes(self) -> int:
        constant = [layer for layer in self.cache.layers if hasattr(layer, "conv_states")]
        states = [state for layer in constant for of in (layer.conv_states, layer.recurrent_states) for state in of.values()]
        return int(sum(state.nbytes for state in states if state is not None))


def warm_up(session: Session, token: int) -> int:
    """Decode until graphs are replayed, where they can be: they are captured once a conversation. The next token."""
    for _ in itertools.takewhile(lambda _: not session.decoder.warm, range(2 * MAX_GRAPHS)):
        token = int(session.step(token).argmax(-1))
    return token


def random_ids(family: ModelFamily, count: int) -> list[int]:
    """Return the token ids, the same in every cell."""
    most = family.config.vocab_size
    ids: list[int] = torch.randint(0, most, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return ids


def read_bytes(family: ModelFamily) -> int:
    """Return the bytes of weights that a decoded token reads: all of the decoder and the head; of the embedding table a row.

    Weights in AWQ and GPTQ are buffers.
    """

    def held(*modules: torch.nn.Module) -> dict[int, torch.Tensor]:
        return {id(each): each for module in modules for each in module.state_dict(keep_vars=True).values()}

    tables = [module for module in family.text_model.modules() if isinstance(module, torch.nn.Embedding | PackedEmbedding)]
    looked_up = held(*tables)
    read = {key: each for key, each in held(family.text_model).items() if key not in looked_up}
    read |= held(family.model.get_output_embeddings())
    return sum(each.nbytes for each in read.values())


def copy_bandwidth(device: torch.device, seconds: float) -> float:
    """Return the bytes read and written a second while copying a large tensor: the best of the rounds within `seconds`."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best, end = 0.0, now(device) + seconds
    while best == 0.0 or time.perf_counter() < end:
        began = now(device)
        target.copy_(source)
        best = max(best, 2 * COPY_BYTES / (now(device) - began))
    return best


def now(device: torch.device) -> float:
    """Return the seconds once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def differences(marks: list[float]) -> list[float]:
    """Return the time from each mark to the next."""
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def rank(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return (rank(values, 0.5) + sorted(values)[(len(values) - 1) // 2]) / 2


def main() -> None:
    """Read a cell from standard input, write what was measured."""
    asked = json.load(sys.stdin)
    request = asked["request"]
    request["detail"] = Detail(**request["detail"])
    try:
        found = measure(Cell(**{**asked, "request": Request(**request)}))
    except EdgeError as error:
        found = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
