"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests never touch the network, and small models are slower on many threads. Where a test takes two, they sleep while they
# wait for each other: on cores that other tests use too, it takes several times as long to wait busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def pytest_configure(config: pytest.Config) -> None:
    """List what other packages will remove, where a run is about their newest or oldest versions; else that is an error."""
    if os.environ.get("EDGEMLLM_TEST_VERSIONS") in ("newest", "floor"):
        for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"default::{category}")
            config.addinivalue_line("filterwarnings", rf"error::{category}:edgemllm\..*")


@pytest.fixture
def inference() -> Iterator[None]:
    """No gradients."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def footage() -> Path:
    """A folder of real videos for development, where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "video"
    if not folder.is_dir():
        pytest.skip("no real footage beside this checkout")
    return folder
