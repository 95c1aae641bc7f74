"""A token through packed layers in compiled loops is the one that PyTorch's operators give, whatever a policy watches."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import tiny
import torch
from tiny import MODELS, Tiny, random_ids
from torch import Tensor

from edgemllm import policies
from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.compiled_line import CompiledLine
from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.straight import straight
from edgemllm.models import packed
from edgemllm.policies.full import Full
from edgemllm.policies.h2o import H2O
from edgemllm.policies.streaming_llm import StreamingLLM

layer = pytest.importorskip("edgemllm.loops.layer", reason="needs the extra cpu")
teams = pytest.importorskip("edgemllm.loops.team", reason="needs the extra cpu")
rows = pytest.importorskip("edgemllm.loops.rows", reason="needs the extra cpu")

pytestmark = pytest.mark.usefixtures("inference", "loops")
SCALED_OR_SLIDING = {"yarn_llama", "qwen2_sliding", "mistral"}
SHAPED = [make for make in MODELS if make.__name__ not in SCALED_OR_SLIDING and straight(make().text) is not None]
CASES = [(make, "int8") for make in SHAPED] + [(make, "int4") for make in (tiny.llama, tiny.qwen2, tiny.qwen3, tiny.smollm3)]
WIDE = {"intermediate_size": 128, "num_key_value_heads": 4}
"""Rows by the 64, as real models have them: others are not joined in 4 bits."""
BUDGET, TOKENS = 48, 80


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch):
    """Loops whatever the processor, by two threads however small the model."""
    monkeypatch.setattr(packed, "_loops", lambda: rows)
    monkeypatch.setattr("edgemllm.loops.compiled.VALUES_EACH", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def packed_model(make, quant: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> Tiny:
    if quant == "int4" and packed._layout() != (rows.BLOCK, True):
        pytest.skip("torch packs 4 bits in another way on this processor")
    for name, size in WIDE.items() if quant == "int4" else ():
        monkeypatch.setitem(tiny.TEXT, name, size)
    made = make()
    packed.pack(made.model, quant, dtype)
    return made


def decoded(model: Tiny, policy: CachePolicy, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of tokens one by one, and the positions that every layer keeps in the end."""
    ran = []
    with monkeypatch.context() as patch:
        fits = CompiledLine.fits
        patch.setattr(CompiledLine, "fits", lambda *given: compiled and fits(*given) and not ran.append(1))
        model.use(NAME).cache = model.new_cache(policy, None if isinstance(policy, Full) else BUDGET, 1)
        hidden = [forward(model.text, model.cache, each) for each in model.text_chunk(random_ids(TOKENS)).split(1)]
    assert len(ran) == (TOKENS - 1 if compiled else 0)  # the first token makes room for all
    return torch.cat(hidden, 1), [each.positions.clone() for each in model.cache.with_slots]


def close(got: Tensor, want: Tensor, quant: str) -> bool:
    """Whether hidden states differ by rounding: of single precision, and in 4 bits of a row to whole numbers."""
    return float((got - want).norm() / (want - want.mean()).norm()) < {"int8": 1e-4, "int4": 0.002}[quant]


@pytest.mark.parametrize(("make", "quant"), CASES, ids=lambda given: getattr(given, "__name__", given))
def test_models_of_llamas_shape_give_the_same(make, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(make, quant, monkeypatch)
    for policy in (Full(), StreamingLLM(slack=1)):
        want, kept = decoded(model, policy, monkeypatch, compiled=False)
        got, mine = decoded(model, policy, monkeypatch, compiled=True)
        assert close(got, want, quant)
        torch.testing.assert_close(mine, kept)


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_keeps_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, policy = packed_model(tiny.llama, "int8", monkeypatch), policies.build(name, [])
    if hasattr(policy, "merge"):  # into which of two a token is folded may be settled by the last bit
        policy = dataclasses.replace(policy, merge="none")
    want, kept = decoded(model, policy, monkeypatch, compiled=False)
    got, mine = decoded(model, policy, monkeypatch, compiled=True)
    assert close(got, want, "int8")
    torch.testing.assert_close(mine, kept)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_half_precision_is_left_to_the_operators(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(tiny.llama, quant, monkeypatch, torch.bfloat16)
    hidden, _ = decoded(model, StreamingLLM(), monkeypatch, False)
    assert hidden.dtype == torch.bfloat16
    assert hidden.isfinite().all()


def test_one_thread_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(tiny.llama, "int8", monkeypatch)
    want, _ = decoded(model, H2O(), monkeypatch, compiled=True)
    torch.set_num_threads(1)
    assert close(decoded(model, H2O(), monkeypatch, compiled=True)[0], want, "int8")


@dataclasses.dataclass(frozen=True)
class Fails(H2O):
    def observe(self, layer: object, attention: Tensor) -> None:
        raise ZeroDivisionError


def test_who_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(tiny.llama, "int8", monkeypatch)
    want, _ = decoded(model, H2O(), monkeypatch, compiled=True)
    for each in model.cache.managed:
        each.policy = Fails()
    with pytest.raises(ZeroDivisionError):
        forward(model.text, model.cache, model.text_chunk(random_ids(1), TOKENS))
    assert torch.equal(decoded(model, H2O(), monkeypatch, compiled=True)[0], want)


def test_what_is_not_a_number_comes_out_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(tiny.llama, "int8", monkeypatch)
    decoded(model, H2O(), monkeypatch, compiled=True)
    chunk = model.text_chunk(random_ids(1), TOKENS)
    broken = dataclasses.replace(chunk, embeds=torch.full_like(chunk.embeds, torch.nan))
    assert forward(model.text, model.cache, broken).isnan().all()


def test_others_that_fail_are_heard_and_can_be_asked_again() -> None:
    team = teams.Team(1)
    seen: list[int] = []

    def fails(part: int) -> None:
        if part == 1:
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            team.run(fails)
        assert team.run(seen.append)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]


def test_a_team_that_has_gone_to_sleep_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "AWAKE", 1)
    team, seen = teams.Team(2), []
    for _ in range(20):
        team.run(seen.append)
    assert sorted(seen) == sorted([0, 1, 2] * 20)


def test_a_team_does_one_work_at_a_time() -> None:
    team, began, end = teams.Team(1), threading.Event(), threading.Event()

    def slow(part: int) -> None:
        began.set()
        end.wait(60)

    other = threading.Thread(target=team.run, args=(slow,))
    other.start()
    assert began.wait(60)
    assert not team.run(slow)
    end.set()
    other.join()


def test_exponentials_are_exact_to_single_precision() -> None:
    x = -np.concatenate((np.linspace(0, 87, 10_000), [0.0])).astype(np.float32)
    got = np.array([layer.exponential(each) for each in x])
    np.testing.assert_allclose(got, np.exp(x.astype(np.float64)), rtol=5e-6)
    assert layer.exponential(np.float32(-np.inf)) < 1e-37
