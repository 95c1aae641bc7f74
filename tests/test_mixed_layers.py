"""Caches of mixed kinds: what no policy manages is counted, saved and continued like the rest, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import MODELS, qwen3_5_text, random_ids

from edgemllm import session_file
from edgemllm.cache.attention import NAME
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.session import Session

pytestmark = pytest.mark.usefixtures("inference")
EVERY_FAMILY = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def streaming(make) -> Session:
    tiny = make().use(NAME)
    chunk = max(16, tiny.family.sizes(tiny.model.config).indivisible)
    return Session(tiny.family, InfMLLM(window=8), 48, chunk)


def feed(session: Session, count: int, seed: int = 1) -> torch.Tensor:
    return session.feed(session.family.text(random_ids(count, seed)[0].tolist(), session.position))


@EVERY_FAMILY
def test_the_budget_is_known_to_the_byte_before_anything_is_read(make) -> None:
    session = streaming(make)
    feed(session, 130)
    kv, spec = session.kv(), session.family.spec
    assert kv["bytes"] == kv["budget_bytes"]
    assert kv["state_bytes"] == spec.state_bytes
    assert kv["managed_layers"] == len(spec.managed) == len(kv["tokens_per_layer"])


@EVERY_FAMILY
def test_a_saved_stream_continues_as_if_nothing_had_happened(make, tmp_path: Path) -> None:
    session, resumed = streaming(make), streaming(make)
    feed(session, 130)
    session_file.save(session, tmp_path / "state.edge")
    session_file.load(resumed, tmp_path / "state.edge")
    for size, seed in ((1, 2), (40, 3), (1, 4)):
        torch.testing.assert_close(feed(resumed, size, seed), feed(session, size, seed), rtol=0, atol=0)


def test_clearing_forgets_the_constant_states_too() -> None:
    session, fresh = streaming(qwen3_5_text), streaming(qwen3_5_text)
    feed(session, 130)
    session.clear()
    torch.testing.assert_close(feed(session, 30), feed(fresh, 30), rtol=0, atol=0)


def test_a_long_stream_through_a_hybrid_takes_the_same_bytes_at_every_step() -> None:
    session = streaming(qwen3_5_text)
    taken = {feed(session, 16, seed).isfinite().all() and session.cache.nbytes for seed in range(200)}
    assert taken == {session.kv()["budget_bytes"]}
