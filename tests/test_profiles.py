"""Device profiles: every shipped file is complete and sourced, mistakes are explained, machines are recognised."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from boards import orin_nano, thor

from edgemllm.device import detect as detection
from edgemllm.device import profiles
from edgemllm.device.detect import Gpu, detect
from edgemllm.errors import UsageError

GIB = 2**30


def no_gpu() -> None:
    return None


def board(root: Path, mem_kib: int, model: str = "", compatible: str = "") -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {mem_kib} kB\nMemAvailable: {mem_kib // 2} kB\n")
    if model:
        (root / "proc/device-tree/model").write_text(model + "\0")
        (root / "proc/device-tree/compatible").write_text(compatible + "\0")
    return root


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_loads_and_every_figure_has_a_source(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    figures = {"reserved", "chunk", "margin"}
    figures |= {"memory"} if profile.memory is not None else set()
    figures |= {"bandwidth_gb_s"} if profile.bandwidth_gb_s is not None else set()
    figures |= {"cache_memory"} if profile.cache.memory is not None else set()
    assert set(profile.source) == figures
    assert all(len(text) > 5 for text in profile.source.values())
    assert profile.bandwidth_gb_s is None or "https://" in profile.source["bandwidth_gb_s"]
    assert not profile.gpu_bandwidths or profile.bandwidth_gb_s == min(profile.gpu_bandwidths.values())
    assert 0 < profile.idle_memory().free_bytes <= profile.idle_memory().total_bytes
    assert profile.margin < profile.idle_memory().free_bytes


def test_classes_that_users_expect() -> None:
    assert {"orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "cpu"} <= set(profiles.names())
    assert {"a100-80gb", "h100-80gb", "h200-141gb"} <= set(profiles.names())
    assert {f"rtx-laptop-{size}gb" for size in (8, 12, 16, 24)} <= set(profiles.names())
    assert {f"rtx-{size}gb" for size in (12, 16, 24, 32)} <= set(profiles.names())
    assert {"agx-thor-128gb", "dgx-spark-128gb", "orin-nano-8gb-15w", "apple-silicon"} <= set(profiles.names())
    nano = profiles.load("orin-nano-8gb")
    assert (nano.kind, nano.backend, nano.weights) == ("unified", "cuda", "nf4")
    assert nano.memory == 7607 * 2**20


def test_unknown_profile_names_the_nearest_and_all() -> None:
    with pytest.raises(UsageError) as error:
        profiles.load("orin-nano")
    assert "did you mean 'orin-nano-8gb'?" in error.value.message
    assert all(name in error.value.hint for name in profiles.names())
    with pytest.raises(UsageError) as error:
        profiles.load("toaster")
    assert "did you mean" not in error.value.message
    assert "cpu" in error.value.hint


def test_profiles_of_a_checkout_and_of_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (profiles.configs_folder() / "devices/cpu.toml").is_file()
    installed = tmp_path / "site-packages/edgemllm/configs"
    shutil.copytree(profiles.configs_folder(), installed)
    monkeypatch.setattr(profiles, "__file__", str(installed.parent / "device/profiles.py"))
    assert profiles.configs_folder() == installed
    assert profiles.load("cpu").backend == "cpu"


def test_own_file_and_its_mistakes(tmp_path: Path) -> None:
    text = (profiles.configs_folder() / "devices/orin-nano-8gb.toml").read_text()
    good = tmp_path / "mine.toml"
    good.write_text(text)
    assert profiles.load(good) == replace(profiles.load("orin-nano-8gb"), name="mine")
    for before, after, words in [
        ("chunk = 256", "chunks = 256", ["mine.toml", "'chunks'", "'chunk'"]),
        ("chunk = 256", "chunk = 0", ["mine.toml", "chunk"]),
        ("[cache]\npolicy", "[cache]\npolcy", ["mine.toml", "cache.polcy", "cache.policy"]),
        ('margin = "1 GiB"', 'margin = "lots"', ["mine.toml", "margin", "512MiB"]),
        ('weights = "nf4"', 'weights = "q4"', ["mine.toml", "weights", "nf4"]),
        ('margin = "1 GiB"\n', "", ["mine.toml", "margin"]),
        ("chunk = 256", "chunk =", ["mine.toml"]),
    ]:
        assert before in text
        good.write_text(text.replace(before, after, 1))
        with pytest.raises(UsageError) as error:
            profiles.load(str(good))
        assert all(word in error.value.message + error.value.hint for word in words), after
    with pytest.raises(UsageError, match="no device profile at"):
        profiles.load(str(tmp_path / "missing.toml"))


def test_jetson_by_module_number(tmp_path: Path) -> None:
    compatible = "nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234"
    found = detect(board(tmp_path, 7_700_000, "NVIDIA Jetson Orin Nano", compatible), no_gpu)
    assert (found.name, found.memory) == ("orin-nano-8gb", 7_700_000 * 1024)


def test_jetson_with_unlisted_module_number_by_memory(tmp_path: Path) -> None:
    root = board(tmp_path, 15_700_000, "NVIDIA Jetson Orin NX Super", "nvidia,p9999\0nvidia,tegra234")
    found = detect(root, no_gpu)
    assert (found.name, found.title) == ("orin-nx-16gb", "NVIDIA Jetson Orin NX Super")


def test_jetson_by_release_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3")
    assert detect(board(tmp_path, 64_000_000), no_gpu).name == "agx-orin-64gb"


def test_jetson_in_a_container_by_compute_capability(tmp_path: Path) -> None:
    gpu = Gpu("Orin", 30 * GIB, (8, 7), True)
    assert detect(board(tmp_path, 31_000_000), lambda: gpu).name == "agx-orin-32gb"


@pytest.mark.parametrize(
    ("mode", "name", "bandwidth"), [(0, "orin-nano-8gb-15w", 68), (1, "orin-nano-8gb", 102), (2, "orin-nano-8gb", 102)]
)
def test_a_power_mode_decides_the_bandwidth_of_an_orin_nano(tmp_path: Path, mode: int, name: str, bandwidth: float) -> None:
    found = detect(orin_nano(tmp_path, mode=mode), no_gpu)
    assert (found.name, found.bandwidth_gb_s, found.memory) == (name, bandwidth, 7_802_000 * 1024)


def test_a_thor_by_its_module_and_in_a_container_by_its_gpu(tmp_path: Path) -> None:
    assert detect(thor(tmp_path / "board"), no_gpu).name == "agx-thor-128gb"
    gpu = Gpu("NVIDIA Thor", 120 * GIB, (11, 0), True)
    assert detect(board(tmp_path / "container", 128_800_000), lambda: gpu).name == "agx-thor-128gb"
    half = detect(board(tmp_path / "half", 64_000_000), lambda: gpu)  # the T4000 has the same name
    assert (half.title, half.memory) == ("NVIDIA Thor", 64_000_000 * 1024)


def test_unified_memory_by_the_name_of_the_gpu(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA GB10", 120 * GIB, (12, 1), True)
    found = detect(board(tmp_path, 127_600_748), lambda: gpu)
    assert (found.name, found.bandwidth_gb_s) == ("dgx-spark-128gb", 273)


def test_unknown_board_with_unified_memory_claims_no_bandwidth(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA N1X", 45 * GIB, (12, 1), True)
    found = detect(board(tmp_path, 54_000_000), lambda: gpu)
    assert (found.name, found.kind, found.bandwidth_gb_s) == ("auto", "unified", None)


@pytest.mark.parametrize(
    ("gpu_name", "gib", "expected", "bandwidth"),
    [
        ("NVIDIA H200", 139, "h200-141gb", 4800),
        ("NVIDIA A100-SXM4-80GB", 79, "a100-80gb", 2040),
        ("NVIDIA H100 80GB HBM3", 79, "h100-80gb", 3350),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", 8, "rtx-laptop-8gb", 256),
        ("NVIDIA GeForce RTX 3060", 12, "rtx-12gb", 360),
        ("NVIDIA GeForce RTX 4070", 12, "rtx-12gb", 504),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, "rtx-16gb", 672),
        ("NVIDIA GeForce RTX 5060 Ti", 16, "rtx-16gb", 448),
        ("NVIDIA GeForce RTX 4090", 24, "rtx-24gb", 1008),
        ("NVIDIA GeForce RTX 5090", 31, "rtx-32gb", 1792),
        ("NVIDIA GeForce RTX 5060 Ti", 8, "auto", None),
        ("NVIDIA GeForce RTX 5070 Ti Laptop GPU", 12, "auto", None),
        ("NVIDIA A100-SXM4-40GB", 40, "auto", None),
    ],
)
def test_graphics_cards(tmp_path: Path, gpu_name: str, gib: int, expected: str, bandwidth: float | None) -> None:
    found = detect(board(tmp_path, 32_000_000), lambda: Gpu(gpu_name, gib * GIB, (8, 0), False))
    assert (found.name, found.kind, found.memory) == (expected, "discrete", gib * GIB)
    assert found.bandwidth_gb_s == bandwidth


def test_small_card_and_no_card(tmp_path: Path) -> None:
    root = board(tmp_path, 32_000_000)
    small = detect(root, lambda: Gpu("NVIDIA GTX 1650", 4 * GIB, (7, 5), False))
    assert (small.weights, small.memory) == ("nf4", 4 * GIB)
    assert detect(root, no_gpu).name == "cpu"


def test_a_mac_profile_asks_the_machine() -> None:
    mac = profiles.load("apple-silicon")
    assert (mac.backend, mac.memory, mac.bandwidth_gb_s) == ("mps", None, None)


def test_auto_is_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(detection, "detect", lambda root=tmp_path: profiles.load("h200-141gb"))
    assert detection.profile("auto").name == "h200-141gb"
