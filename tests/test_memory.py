"""The memory probe on fake machines, and amounts of memory as people write them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edgemllm.device import memory
from edgemllm.device.memory import human_bytes, parse_bytes, probe
from edgemllm.errors import UsageError

MIB = 2**20
ORIN = "MemTotal: 7790000 kB\nMemFree: 300000 kB\nMemAvailable: 5200000 kB\nSwapTotal: 3890000 kB\nSwapFree: 3890000 kB\n"


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(ORIN)
    return tmp_path


def group(root: Path, path: str, **files: object) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def fake_cuda(monkeypatch: pytest.MonkeyPatch, integrated: bool) -> None:
    properties = SimpleNamespace(is_integrated=integrated)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3000 * MIB, 8000 * MIB))


def test_unified_is_mem_available_without_swap(orin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, integrated=True)
    found = probe("cuda", orin)
    assert (found.kind, found.free_bytes, found.total_bytes) == ("unified", 5_200_000 * 1024, 7_790_000 * 1024)
    assert found.used_bytes == 2_590_000 * 1024


def test_discrete_is_the_card(orin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, integrated=False)
    found = probe("cuda:1", orin)
    assert (found.kind, found.free_bytes, found.total_bytes) == ("discrete", 3000 * MIB, 8000 * MIB)


def test_host_and_mps(orin: Path) -> None:
    assert (probe("cpu", orin).kind, probe("mps", orin).kind) == ("host", "unified")
    assert probe("cpu", orin).source == "MemAvailable"


def test_container_limit_below_the_machine(orin: Path) -> None:
    (orin / "proc/self/cgroup").write_text("0::/\n")
    group(orin, "", memory__max=2000 * MIB, memory__current=500 * MIB)
    found = probe("cpu", orin)
    assert (found.free_bytes, found.total_bytes, found.source) == (1500 * MIB, 2000 * MIB, "container limit")


def test_a_parent_group_may_be_the_tighter_one_and_file_pages_are_not_used(orin: Path) -> None:
    (orin / "proc/self/cgroup").write_text("0::/user/session\n")
    group(orin, "user", memory__max=1000 * MIB, memory__current=900 * MIB)
    group(orin, "user", memory__stat=f"anon 1\ninactive_file {600 * MIB}")
    group(orin, "user/session", memory__max="max", memory__current=1)
    assert probe("cpu", orin).free_bytes == 700 * MIB


def test_version_one_and_its_way_to_say_no_limit(orin: Path) -> None:
    (orin / "proc/self/cgroup").write_text("4:memory:/docker/abc\n0::/\n")
    group(orin, "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    assert probe("cpu", orin).source == "MemAvailable"
    group(orin, "memory", memory__limit_in_bytes=100 * MIB, memory__usage_in_bytes=120 * MIB)
    assert probe("cpu", orin).free_bytes == 0


def test_this_process() -> None:
    assert 0 < memory.rss_bytes() <= memory.rss_peak_bytes() * 1.01
    assert memory.device_peak_bytes("cpu") == 0
    assert set(memory.report("cpu")) == {"kind", "rss_peak_bytes", "device_peak_bytes", "free_bytes", "total_bytes"}
    assert 0 < probe().free_bytes <= probe().total_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("512MiB", 512 * MIB), ("2 GB", 2 * 10**9), ("1.5g", 3 * 2**29), ("64k", 65536), ("100", 100), ("1 TiB", 2**40)],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "abc", "-1MiB", "1..5g", "12 parsecs", "MiB"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_bytes(text)
    assert "512MiB" in error.value.hint


def test_human_bytes() -> None:
    assert [human_bytes(count) for count in (0, 1023, 112 * MIB, 3 * 2**29)] == [
        "0 B",
        "1023 B",
        "112.0 MiB",
        "1.5 GiB",
    ]
