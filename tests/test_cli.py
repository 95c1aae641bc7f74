"""The command line as a user meets it: output, exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import run, start, type_to
from typer.testing import CliRunner

from edgemllm import policies
from edgemllm.cli.main import app
from edgemllm.device.detect import DRIVERS
from edgemllm.models.loading import DEMO

LECTURE = DEMO / "lecture.mp4"


SHORT_RUN = ("chat", "--video", str(LECTURE), "--end", "20", "--max-tokens", "8")


def test_json_is_one_object_within_its_budget() -> None:
    done = run(
        "chat", "--video", str(LECTURE), "--policy", "inf-mllm", "--kv-budget", "512", "--json",
        "What number was with the red circle?",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "edgemllm/1"
    assert result["command"] == "chat"
    assert [turn["question"] for turn in result["turns"]] == ["What number was with the red circle?"]
    assert set(result["turns"][0]) == {"question", "answer", "tokens", "ttft_ms", "decode_tps"}
    kv = result["kv"]
    assert kv["bytes"] <= kv["budget_bytes"]
    assert max(kv["tokens_per_layer"]) <= 512
    assert kv["budget_tokens"] == 512
    assert kv["evicted_tokens"] > 0
    assert result["video"]["frames_seen"] == 150
    assert result["video"]["frames_total"] == 1500
    assert result["quant"] == "none"
    assert set(result["memory"]) == {"kind", "rss_peak_bytes", "device_peak_bytes", "free_bytes", "total_bytes"}
    assert "150 frames sampled" in done.stderr
    assert "tokens evicted; remembering" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_jsonl_ends_with_the_exit_code_and_quiet_is_quiet() -> None:
    done = run(*SHORT_RUN, "--jsonl", "--quiet", "Was there a red circle?")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert [event["event"] for event in events if event["event"] == "answer"] == ["answer"]
    assert events[-1] == {"schema": "edgemllm/1", "event": "end", "exit_code": 0}
    assert done.stderr == ""


def test_questions_come_line_by_line_from_a_pipe() -> None:
    done = run(*SHORT_RUN, "--quiet", stdin="Was there a red circle?\n\nWhat is on the screen now?\n")
    assert done.returncode == 0
    assert len(done.stdout.strip().splitlines()) == 2


def test_empty_standard_input_is_said_and_ends_well() -> None:
    done = run("chat", stdin="")
    assert done.returncode == 0
    assert "no question on standard input" in done.stderr


def test_half_a_budget_in_percent_and_bytes() -> None:
    for budget, most in (("50%", 65), ("400KiB", 130)):
        done = run(*SHORT_RUN, "--kv-budget", budget, "--json", "-q", "Was there a red circle?")
        assert done.returncode == 0, done.stderr
        kv = json.loads(done.stdout)["kv"]
        assert kv["budget_tokens"] <= most
        assert kv["bytes"] <= kv["budget_bytes"]
        if budget.endswith("KiB"):
            assert kv["bytes"] <= 400 * 1024


def broken(tmp_path: Path) -> dict[str, list[str]]:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(LECTURE.read_bytes()[:200_000])
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 50)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(DEMO / "config.json", bare)
    pickled = tmp_path / "pickled"
    shutil.copytree(bare, pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    shutil.copy(DEMO / "model.safetensors", other)
    shutil.copy(DEMO / "tokenizer.json", other)
    return {
        "policy": ["2", "unknown policy 'no-such'", "--policy", "no-such", "hi"],
        "text as video": ["6", "not a video", "--video", str(text), "hi"],
        "cut video": ["6", "cut", "--video", str(cut), "hi"],
        "missing video": ["3", "no video", "--video", str(tmp_path / "none.mp4"), "hi"],
        "missing image": ["3", "no image", "--image", str(tmp_path / "none.png"), "hi"],
        "tiny budget": ["4", "at least", "--kv-budget", "3", "hi"],
        "nonsense budget": ["2", "KV budget", "--kv-budget", "lots", "hi"],
        "full with a budget": ["4", "full", "--policy", "full", "--kv-budget", "64", "--video", str(LECTURE), "hi"],
        "full's chunk": ["4", "chunks of 99", "--dry-run", "--policy", "full", "--kv-budget", "64", "--chunk", "99", "hi"],
        "no weights": ["3", "no model.safetensors", "--model", str(bare), "hi"],
        "pickled weights": ["3", "pickle", "--model", str(pickled), "hi"],
        "unsupported model": ["2", "not supported", "--model", str(other), "hi"],
        "no such folder": ["3", "no model folder", "--model", str(tmp_path / "nothing"), "hi"],
        "unknown hub id offline": ["3", "offline", "--model", "nobody/nothing", "--offline", "hi"],
        "setting": ["2", "did you mean 'window'", "--set", "widnow=3", "hi"],
        "setting's value": ["2", "a whole number from", "--set", "window=many", "hi"],
        "no policy file": ["3", "no policy file", "--policy", str(tmp_path / "mine.py:Mine"), "hi"],
        "fps": ["2", "fps", "--fps", "0", "--video", str(LECTURE), "hi"],
        "start": ["2", "beyond", "--start", "10:00", "--video", str(LECTURE), "hi"],
        "time": ["2", "not a time", "--start", "soon", "--video", str(LECTURE), "hi"],
        "empty question": ["2", "empty", ""],
        "profile": ["2", "profile", "--profile", "orin-nan-8gb", "hi"],
        "quant": ["2", "--quant", "--quant", "q4", "hi"],
        "chunk": ["2", "--chunk", "--chunk", "0", "hi"],
        "progress": ["2", "--progress", "--progress", "loud", "hi"],
        "cuda": ["2", "cuda", "--device", "cuda", "hi"],
        "random model": ["2", "did you mean", "--model", "random:qwen2.5-vl-7", "hi"],
    }


CASES = [
    "policy", "text as video", "cut video", "missing video", "missing image", "tiny budget", "nonsense budget",
    "full with a budget", "full's chunk", "no weights", "pickled weights", "unsupported model", "no such folder",
    "unknown hub id offline", "setting", "setting's value", "no policy file", "fps", "start", "time", "empty question",
    "profile", "quant", "chunk", "progress", "cuda", "random model",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_clear_line_and_its_exit_code(case: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from edgemllm.cli.main import app

    if case == "cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
    code, words, *arguments = broken(tmp_path)[case]
    done = CliRunner().invoke(app, ["chat", *arguments])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == int(code), done.output
    assert len(errors) == 1, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_precedence_flag_environment_file(tmp_path: Path) -> None:
    def policy(*arguments: str, **environment: str) -> str:
        done = run("chat", "--json", "-q", "--max-tokens", "1", *arguments, "hi", cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["policy"])

    (tmp_path / "edgemllm.toml").write_text('[chat]\npolicy = "window"\n')
    assert policy() == "window"
    assert policy(EDGEMLLM_POLICY="streaming-llm") == "streaming-llm"
    assert policy("--policy", "full", EDGEMLLM_POLICY="streaming-llm") == "full"
    (tmp_path / "edgemllm.toml").write_text('polcy = "window"\n')
    done = run("chat", "hi", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'policy'" in done.stderr


def test_the_environment_asks_for_tracebacks_as_the_option_does() -> None:
    asked = ("chat", "--video", "none.mp4", "hi")
    assert "Traceback" in run(*asked, "--verbose").stderr
    assert "Traceback" in run(*asked, EDGEMLLM_VERBOSE="1").stderr
    assert "Traceback" not in run(*asked, EDGEMLLM_VERBOSE="0").stderr


def test_help_has_options_under_headings_and_says_how_to_set_them_in_the_environment() -> None:
    page = run("chat", "--help").stdout
    assert page.index("\nMedia:\n") < page.index("--video") < page.index("\nMemory:\n") < page.index("--policy")
    assert "EDGEMLLM_KV_BUDGET" in page


def test_help_and_version_import_nothing_slow() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom edgemllm.cli.main import app\n"
        "assert CliRunner().invoke(app, sys.argv[1:]).exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'numpy', 'rich.markdown') if name in sys.modules])"
    )
    for arguments in (["--help"], ["chat", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_plan_exits_4_with_what_to_change() -> None:
    fits = run("plan", "--json")
    assert fits.returncode == 0
    plan = json.loads(fits.stdout)
    assert plan["fits"] is True
    assert plan["total_bytes"] == sum(plan[f"{part}_bytes"] for part in ("weights", "vision", "activation", "kv", "margin"))
    tight = run("plan", "--profile", "orin-nano-8gb", "--kv-budget", "1GiB", "--policy", "window")
    roomy = run("plan", "--profile", "orin-nano-8gb", "--kv-budget", "64GiB")
    assert tight.returncode == 0
    assert roomy.returncode == 4
    assert "try:" in roomy.stdout


def test_dry_run_loads_nothing() -> None:
    done = run("chat", "--dry-run", "hi")
    assert done.returncode == 0
    assert "kv cache" in done.stdout


def test_policies_and_profiles_are_listed_and_explained() -> None:
    assert "streaming-llm" in run("policies").stdout
    shown = run("policies", "inf-mllm").stdout
    assert "arxiv.org/abs/2409.09086" in shown
    assert "Retrieval window" in shown
    assert "orin-nano-8gb" in run("profiles").stdout
    assert "source" in run("profiles", "orin-nano-8gb").stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m edgemllm profiles | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_output(number: int, code: int) -> None:
    running = start(
        "chat", "--video", str(LECTURE), "--fps", "10", "--kv-budget", "128", "--json", "hi", EDGEMLLM_PROGRESS="plain"
    )
    running.wait_for("  kv ")  # the first line of the meter: it is watching
    running.send(number)
    done = running.end(60)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert found["kv"]["seen_tokens"] > 0
    assert 0 < 4 * found["video"]["frames_seen"] <= found["kv"]["seen_tokens"], "frames decoded ahead were not seen"
    assert "Traceback" not in done.stderr


def test_known_models_and_where_one_fits() -> None:
    listed = run("models")
    assert listed.returncode == 0
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in listed.stdout
    table = run("plan", "--model", "demo", "--profile", "all", "--json")
    plans = json.loads(table.stdout)["plans"]
    assert {"orin-nano-8gb", "h200-141gb"} <= {plan["profile"] for plan in plans if plan["fits"]}


def test_detail_that_a_model_does_not_offer() -> None:
    done = run(*SHORT_RUN, "--tokens-per-frame", "64", "hi")
    assert done.returncode == 2
    assert "pictures of one size" in done.stderr


def test_a_name_that_models_prints_is_short_for_its_hub_id() -> None:
    done = run("chat", "--offline", "-m", "qwen2.5-vl-3b", "hi")
    assert done.returncode == 3  # never downloaded here
    assert "qwen2.5-vl-3b is short for Qwen/Qwen2.5-VL-3B-Instruct (random:qwen2.5-vl-3b:" in done.stderr
    assert "no trained weights" in run("chat", "-m", "bench-134m", "hi").stderr
    assert "did you mean 'qwen2.5-vl-3b'" in run("chat", "-m", "qwen2.5-vl-3", "hi").stderr
    found = run("models", "qwen")
    assert found.returncode == 3
    assert "qwen2.5-vl-3b" in found.stderr
    assert "gemma" not in found.stderr
    assert "3.7 million" in run("models", "demo").stdout


def test_a_plan_names_a_model_that_fits_where_no_setting_helps() -> None:
    tight = ("plan", "--profile", "orin-nano-8gb", "--kv-budget", "512MiB", "--offline")
    done = run(*tight, "-m", "qwen3-vl-8b")
    assert done.returncode == 4
    assert "is short for" not in done.stderr, "a plan downloads nothing"
    advice = done.stdout.splitlines()[-1]
    assert advice.startswith("  try: --model ")
    assert run(*tight, *advice.split()[1:3]).returncode == 0


def test_a_plan_gives_a_speed_only_where_memory_bandwidth_limits_it() -> None:
    assert "no ceiling" in run("plan", "--profile", "orin-nano-8gb").stdout
    assert "tokens/s while decoding" in run("plan", "--profile", "orin-nano-8gb", "-m", "smolvlm2-2.2b").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("chat --fps abc hi", "--fps: a number expected"),
        ("chat --max-tokens 0 hi", "--max-tokens: 1 or more expected"),
        ("chat --josnl hi", "no such option: --josnl (did you mean --json, --jsonl?)"),
        ("chat --kv-budget", "option '--kv-budget' requires an argument"),
        ("chta", "no such command 'chta' (did you mean 'chat'?)"),
        ("--foo", "no such option: --foo"),
    ],
)
def test_a_mistyped_command_line_is_told_in_the_words_of_all_errors(arguments: str, words: str) -> None:
    from typer.testing import CliRunner

    from edgemllm.cli.main import app

    done = CliRunner().invoke(app, arguments.split())
    first = arguments.split()[0]
    command = f"edgemllm {first}" if first == "chat" else "edgemllm"
    assert done.exit_code == 2
    assert done.stderr == f"error: {words}\n  try: {command} --help\n"
    assert done.stdout == ""


def test_a_value_that_was_not_typed_names_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "edgemllm.toml").write_text('[chat]\nfps = "abc"\n')
    assert "--fps ('abc' in edgemllm.toml): a number expected" in run("chat", "hi", cwd=tmp_path).stderr
    done = run("chat", "hi", cwd=tmp_path, EDGEMLLM_FPS="fast")
    assert done.returncode == 2
    assert "--fps (EDGEMLLM_FPS=fast in the environment): a number expected" in done.stderr


@pytest.mark.parametrize(("command", "first"), [("policies", "edge"), ("profiles", "a100-80gb"), ("models", "demo")])
def test_catalogues_are_json_without_torch(command: str, first: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom edgemllm.cli.main import app\n"
        "print(CliRunner().invoke(app, [sys.argv[1], '--json']).stdout.strip())\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    line, imported = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["schema"], found["command"], found[command][0]["name"]) == ("edgemllm/1", command, first)
    if not any(map(os.path.exists, DRIVERS)):
        assert imported == "False"


def test_plans_and_descriptions_import_no_torch() -> None:
    """Of every policy, also for a machine with a GPU that this one is not."""
    there = ["--profile", "orin-nano-8gb", "--model", "qwen2.5-vl-3b"]
    lines = [["plan"], ["plan", "--json"], ["plan", *there, "--json"], ["plan", "--profile", "all"], ["plan", "--model", "all"]]
    lines += [["plan", *there, "--policy", name, "--quant", "none", "--kv-budget", "2048"] for name in policies.names()]
    lines += [[*command, *more] for command in (["policies", "edge"], ["models", "demo"]) for more in ([], ["--json"])]
    lines += [["policies", name] for name in policies.names()] + [["models", "vicuna-7b"]]
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom edgemllm.cli.main import app\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(app, line)\n"
        "    found = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "    assert done.stdout and done.exit_code in (0, 4) and not found, (line, done.output, found)"
    )
    if not any(map(os.path.exists, DRIVERS)):
        subprocess.run([sys.executable, "-c", code, json.dumps(lines)], check=True)


def test_every_help_page_has_examples_that_can_be_typed() -> None:
    import shlex

    import typer
    from typer.testing import CliRunner

    from edgemllm.cli.help import EXAMPLES
    from edgemllm.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(EXAMPLES) == set(commands)
    for name, examples in EXAMPLES.items():
        page = CliRunner().invoke(app, [name, "--help"]).stdout
        for example in examples:
            assert f"  edgemllm {name} {example}".rstrip() in page
            commands[name].make_context(name, shlex.split(example.partition(" < ")[0]))


def test_a_word_is_on_the_terminal_before_torch_is_imported() -> None:
    code, shown = type_to("chat", "--video", "none.mp4", "hi", typed="")
    assert code == 3
    assert shown.startswith("loading demo ...\n")
    code, shown = type_to("models", "nonsense", typed="")
    assert code == 3
    assert shown.startswith("planning for nonsense ...\n")
    assert "loading" not in run("chat", "--video", "none.mp4", "hi").stderr


@pytest.mark.parametrize(("signalled", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_that_a_library_makes_an_error_of_is_still_one(signalled: BaseException, code: int, monkeypatch: Any) -> None:
    def imported(*arguments: object, **more: object) -> None:
        try:
            raise signalled
        except BaseException as error:
            raise RuntimeError("initialization failed") from error

    monkeypatch.setattr("edgemllm.commands.plan.command.plan", imported)
    assert CliRunner().invoke(app, ["plan"]).exit_code == code
