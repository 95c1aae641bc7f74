"""`edgemllm doctor`: this machine, boards as fixtures, and libraries that are missing, crash or hang."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boards
import pytest
from boards import CARD, ORIN, THOR, orin_nano, outcomes
from command import run

from edgemllm.commands.doctor import child, report, versions
from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.child import Outcome
from edgemllm.commands.doctor.command import diagnose
from edgemllm.commands.doctor.machine import examine
from edgemllm.device import tegra

TOP = Path(__file__).parents[1]


def checks(root: Path, probes: Any) -> dict[str, Check]:
    return {check.name: check for check in diagnose(examine(root, probes))}


def states(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.state for name, check in found.items() if name != "versions"}


def test_this_machine_works_and_a_kernel_was_run() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    done = run("doctor", "--json")
    told = json.loads(done.stdout)
    found = {check["name"]: check for check in told["checks"]}
    assert (told["schema"], told["command"]) == ("edgemllm/1", "doctor")
    assert {"torch", "device", "profile", "memory", "bitsandbytes", "opencv", "versions", "disk"} <= set(found)
    assert all(set(check) == {"name", "state", "found", "try"} for check in found.values())
    assert "quantises to nf4" in found["bitsandbytes"]["found"]
    assert "decodes video" in found["opencv"]["found"]
    assert 0 < told["memory"]["free_bytes"] <= told["memory"]["total_bytes"]
    assert (done.returncode == 0) == told["ok"] == all(check["state"] != "fails" for check in found.values())
    assert done.returncode in (0, 7)


def test_without_torch_it_says_so_and_exits_7(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{TOP}", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "edgemllm", "doctor"], env=environment, cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert not done.stderr
    assert "FAILS  torch         not installed" in done.stdout
    assert "try: pip install torch\n" in done.stdout
    assert "opencv" in done.stdout  # the rest is tried all the same
    assert "does not work: torch" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("code", "seconds", "words"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 30, "killed by SIGSEGV"),
        ("import os, subprocess\nsubprocess.Popen(['sleep', '60.0625'])\nos.system('sleep 60.0625')", 1, "no answer in 1 s"),
        ("import os, sys\nprint('driver lost', file=sys.stderr)\nsys.stderr.flush()\nos._exit(3)", 30, "status 3: driver lost"),
        ("raise ImportError('libGL.so.1: cannot open shared object file\\nmore')", 30, "libGL.so.1: cannot open"),
    ],
)
def test_a_library_that_crashes_or_hangs_ends_neither_the_command_nor_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float, words: str
) -> None:
    (tmp_path / "cv2.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    broken = child.run("opencv", seconds)
    assert time.monotonic() - began < 10
    found = checks(boards.desktop(tmp_path), outcomes(opencv=broken))["opencv"]
    assert found.state == "fails"
    assert words in found.found
    assert "more" not in found.found
    assert not subprocess.run(["pgrep", "-f", "sleep 60.0625"], capture_output=True, text=True, check=False).stdout


def test_an_orin_nano_super_at_its_best_has_nothing_to_say(tmp_path: Path) -> None:
    machine = examine(orin_nano(tmp_path, (36, "5.0")), outcomes(ORIN))
    found = {check.name: check for check in diagnose(machine)}
    assert set(states(found).values()) == {"ok"}
    assert (machine.profile.name, machine.memory.kind) == ("orin-nano-8gb", "unified")
    assert machine.memory.total_bytes == 7_802_000 * 1024
    assert "MAXN_SUPER" in found["power"].found
    told = report.as_json(machine, list(found.values()))
    assert (told["system"]["jetpack"], told["system"]["jetson_linux"], told["device"]) == ("6", "36.5.0", "cuda")


def test_what_slows_or_starves_an_orin_nano_is_said_with_what_to_type(tmp_path: Path) -> None:
    root = orin_nano(
        tmp_path, mode=0, swap=boards.swaps(("/dev/zram0", 648_000, 0), ("/dev/zram1", 648_000, 0)),
        **{"proc/1201/comm": "gnome-shell\n", "proc/1/comm": "systemd\n"},
    )  # fmt: skip
    found = checks(root, outcomes(ORIN, opencv={"version": "5.0.0", "ffmpeg": True, "gstreamer": False, "decodes": True}))
    notes = {name for name, state in states(found).items() if state == "note"}
    assert notes == {"power", "swap", "desktop", "opencv", "allocations"}
    assert "2133 MHz" in found["power"].found
    assert found["power"].cures == ("sudo nvpmodel -m 2 (MAXN_SUPER)",)
    assert "all of it zram" in found["swap"].found
    assert "multi-user.target" in found["desktop"].cures[0]
    assert "36.4.7" in found["allocations"].found


def test_memory_that_a_driver_keeps_is_found_before_jetpack_7_2(tmp_path: Path) -> None:
    before = checks(boards.thor(tmp_path / "38", held=0.3), outcomes(THOR))["memory"]
    assert before.state == "note"
    assert "vm.drop_caches=3" in before.cures[0]
    after = checks(boards.thor(tmp_path / "39", (39, "2.0"), held=0.3), outcomes(THOR))["memory"]
    assert after.state == "note"
    assert "drop_caches" not in after.cures[0]
    assert checks(boards.thor(tmp_path / "fine"), outcomes(THOR))["memory"].state == "ok"


def test_bitsandbytes_built_for_another_system_is_named_with_its_error(tmp_path: Path) -> None:
    symbol = {"error": "Error named symbol not found at line 233 in file /src/csrc/ops.cu", "missing": None}
    old = checks(orin_nano(tmp_path / "6"), outcomes(ORIN, bitsandbytes=symbol))["bitsandbytes"]
    assert old.state == "fails"
    assert "named symbol not found" in old.found
    assert "jp6/cu126" in old.cures[0]
    new = checks(orin_nano(tmp_path / "7", (39, "2.0")), outcomes(ORIN, bitsandbytes=symbol))["bitsandbytes"]
    assert "build it on the board" in new.cures[0]
    wrong = checks(orin_nano(tmp_path / "w"), outcomes(ORIN, bitsandbytes={"version": "0.50.2", "right": False}))
    assert "come back wrong" in wrong["bitsandbytes"].found


def test_bitsandbytes_is_missed_where_the_profile_needs_it(tmp_path: Path) -> None:
    absent = {"error": "No module named 'bitsandbytes'", "missing": "bitsandbytes"}
    assert checks(orin_nano(tmp_path / "a"), outcomes(ORIN, bitsandbytes=absent))["bitsandbytes"].state == "fails"
    assert checks(boards.thor(tmp_path / "b"), outcomes(THOR, bitsandbytes=absent))["bitsandbytes"].state == "note"
    cpu = checks(boards.tree(tmp_path / "c", {"proc/meminfo": boards.meminfo(8_000_000)}), outcomes(bitsandbytes=absent))
    assert cpu["bitsandbytes"].state == "note"


def test_a_torch_without_kernels_for_this_gpu(tmp_path: Path) -> None:
    fault = {"device": "cuda", **ORIN, "threads": 6, "fault": "CUDA error: no kernel image is available"}
    built = {"version": "2.12.0", "built_for": "CUDA 13.0", "why_not": "", "kernels_for": ["sm_80", "sm_90", "sm_110"]}
    found = checks(orin_nano(tmp_path, (39, "2.0")), outcomes(ORIN, torch=built, device=fault))
    assert found["device"].state == "fails"
    assert "8.7: CUDA error: no kernel image" in found["device"].found
    assert "sm_80, sm_90, sm_110" in found["device"].found
    assert "kernels for Orin" in found["device"].cures[0]
    assert "bitsandbytes" not in found  # nothing that computes on this device can be tried


@pytest.mark.parametrize(
    ("torch", "line", "words"),
    [
        ({"version": "2.13.0+cpu", "built_for": "", "why_not": "", "kernels_for": []}, "torch", "without CUDA"),
        (
            {"version": "2.8.0", "built_for": "CUDA 12.6", "why_not": "driver too old", "kernels_for": []},
            "device",
            "driver too old",
        ),
    ],
)
def test_a_gpu_that_torch_does_not_see(tmp_path: Path, torch: dict[str, Any], line: str, words: str) -> None:
    probes = outcomes(torch=torch)
    for root in (orin_nano(tmp_path / "jetson"), boards.desktop(tmp_path / "pc")):
        found = checks(root, probes)[line]
        assert (found.state, bool(found.cures)) == ("fails", True)
        assert words in found.found


def test_a_graphics_card_has_its_own_memory(tmp_path: Path) -> None:
    own = {"kind": "discrete", "free_bytes": 6 * boards.GIB, "total_bytes": 8 * boards.GIB, "source": "GPU memory"}
    machine = examine(boards.desktop(tmp_path), outcomes(CARD, memory=own))
    assert (machine.profile.name, machine.memory.free_bytes) == ("rtx-laptop-8gb", 6 * boards.GIB)
    assert set(states({check.name: check for check in diagnose(machine)}).values()) == {"ok"}


def test_a_driver_that_hangs_is_reported_with_the_step(tmp_path: Path) -> None:
    built = {"version": "2.8.0", "built_for": "CUDA 12.6", "why_not": "", "kernels_for": ["sm_87"]}
    found = checks(orin_nano(tmp_path), outcomes(device=Outcome({"torch": built}, "device", "no answer in 120 s")))
    assert (found["torch"].state, found["device"].state) == ("ok", "fails")
    assert "no answer in 120 s" in found["device"].found


def test_a_disk_that_is_full_read_only_or_silent(tmp_path: Path) -> None:
    root = boards.desktop(tmp_path)
    for disk, state in [
        ({"folder": "/hub", "free_bytes": boards.GIB, "writable": True}, "note"),
        ({"folder": "/hub", "free_bytes": 64 * boards.GIB, "writable": False}, "fails"),
        (Outcome({}, "disk", "no answer in 10 s"), "fails"),
    ]:
        found = checks(root, outcomes(disk=disk))["disk"]
        assert found.state == state
        assert "HF_HOME=" in found.cures[0]


def test_versions_out_of_range_and_missing_ones_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    really = versions._installed
    made_up = {"transformers": "4.57.1", "rich": None, "torch": "2.8.0a0+nv25.10", "gguf": None}
    monkeypatch.setattr(versions, "_installed", lambda name: made_up.get(name, really(name)))
    found = checks(boards.desktop(tmp_path), outcomes())["versions"]
    assert found.state == "fails"
    assert "transformers 4.57.1 is not" in found.found
    assert "rich is not installed" in found.found
    assert "torch" not in found.found  # NVIDIA's own build of a version in the range
    assert "gguf" not in found.found  # an extra
    assert len(found.cures) == 1
    assert ">=5.17" in found.cures[0]
    assert "'rich>=" in found.cures[0]


def test_declared_and_tested_versions_are_known() -> None:
    names = {requirement.name: optional for requirement, optional in versions.declared()}
    assert names["torch"] is False
    assert names["bitsandbytes"] is True
    assert "pytest" not in names
    assert versions.tested_versions()["transformers"].startswith("5.")


def test_jetson_linux_and_power_modes_are_read(tmp_path: Path) -> None:
    root = orin_nano(tmp_path, (39, "2.0"), mode=3)
    system, mode = tegra.release(root), tegra.power_mode(root)
    assert system is not None
    assert (system.version, system.jetpack) == ("39.2.0", "7.2")
    assert mode is not None
    assert (mode.number, mode.name, mode.memory_hz) == (3, "7W", 2133000000)
    assert [each.name for each in tegra.power_modes(root)] == list(boards.NANO_MODES)
    assert tegra.release(tmp_path / "nowhere") is None
    assert tegra.power_mode(tmp_path / "nowhere") is None


@pytest.mark.parametrize("width", [20, 80, 120, 300])
def test_the_report_fits_the_screen_and_breaks_no_command(tmp_path: Path, width: int) -> None:
    machine = examine(orin_nano(tmp_path, mode=0, swap=boards.swaps(("/dev/zram0", 9, 0))), outcomes(ORIN))
    found = diagnose(machine)
    shown = report.lines(machine, found, width)
    commands = [line for line in shown if "try: " in line]
    assert len(commands) == sum(len(check.cures) for check in found)
    assert all(len(line) < max(width, report.NARROW) for line in shown if line not in commands)
    assert len(report.lines(machine, found, 80)) <= 48
