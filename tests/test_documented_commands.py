"""Every command in README and docs is run by a test, or listed here with the reason why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from command import run

from edgemllm.cli.main import app

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted(TOP.glob("docs/**/*.md"))]
START = re.compile(
    r"(?:[A-Z_]+=\S* )?(?:\$ )?((?:edgemllm|scripts/\w+|python -m lab[\w.]+|pip install|python) .*|scripts/\w+)$"
)


def documented() -> list[str]:
    """Commands in fenced and indented blocks, with continued lines joined and comments dropped."""
    found = []
    for page in PAGES:
        fenced, kept = False, []
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                fenced = not fenced
            elif fenced or line.startswith("    "):
                kept.append(line.strip())
        for line in "\n".join(kept).replace("\\\n", "").splitlines():
            command = START.match(line.split("  #")[0].strip())
            if command:
                found.append(re.sub(r" +", " ", command[1].strip()))
    return sorted(set(found))


RUN = {
    'edgemllm chat -q --video edgemllm/assets/demo/lecture.mp4 --policy inf-mllm "What number was with the red square?"': (
        0,
        "5",
    ),
    "edgemllm plan --profile orin-nano-8gb": (0, "fits"),
    "edgemllm plan --model random:qwen2.5-vl-7b --profile orin-nano-8gb": (4, "does not fit"),
    "edgemllm policies inf-mllm": (0, "bias"),
}
"""Commands that run as they stand, with their exit code and what they print."""

HOURS = "takes hours; its page has the figures. Its program is run small by "
ELSEWHERE = {
    "edgemllm batch": "test_batch.py::test_a_corrupt_and_a_missing_video_are_lines_and_resume_computes_only_them"
        " and test_batch_ray.py::test_two_workers_answer_as_one_process_does_and_nothing_is_lost_with_a_worker",
    "edgemllm bench": "takes minutes to hours; the same options: test_bench.py::test_a_grid_beside_stock_as_json",
    "edgemllm chat --video edgemllm/assets/demo/lecture.mp4 --kv-budget 256": "a conversation: test_conversation.py",
    "edgemllm chat --text book.txt": "a book: test_text_in.py::test_chat_reads_texts_before_its_questions",
    "edgemllm archive": "test_archive.py::test_the_archive_command_lists_searches_exports_deletes_and_checks",
    "edgemllm chat --video day.mp4 --archive": "the next one",
    "edgemllm chat --video edgemllm/assets/demo/lecture.mp4 --policy edge --kv-budget 48 --archive": "test_archive.py::"
        "test_chat_says_and_reports_what_it_looked_at_again_and_another_run_knows_it_without_the_video",
    "edgemllm chat --archive lecture.db": "the same test",
    "edgemllm chat --video lecture.mp4 --policy ./mine.py:Mine":
        "test_policy_files.py::test_the_example_of_contributing_is_the_file_that_is_checked_and_run",
    "edgemllm doctor": "tells of this machine: test_doctor.py::test_this_machine_works_and_a_kernel_was_run",
    "edgemllm inspect": "takes a minute: test_inspect.py::test_pictures_and_numbers_of_a_clip",
    "edgemllm perplexity": HOURS + "test_perplexity_command.py",
    "edgemllm plan --model all": "takes minutes: test_cli.py::test_known_models_and_where_one_fits",
    "edgemllm plan --model random:qwen2.5-vl-7b --profile all": "test_cli.py::test_known_models_and_where_one_fits",
    "edgemllm recall": HOURS + "test_recall.py::test_one_object_with_a_run_for_every_policy_budget_footage_and_protocol",
    "edgemllm serve": "runs until it is ended: test_serve.py::test_a_video_is_answered_as_by_the_command_line",
    "edgemllm stream --text app.log": "grows: test_text_in.py::test_a_text_stream_continues_where_it_was_saved",
    "edgemllm stream rtsp://camera/live": "a camera: test_stream.py::test_a_camera_is_watched_across_a_gap_and_the_gap_is_told",
    "python -m edgemllm.harness": "needs lm-eval: test_harness.py::test_lm_eval_reports_what_the_model_says_of_each_token",
    "python -m lmms_eval": "needs lmms-eval, a model and a data set: "
        "test_harness.py::test_lmms_eval_watches_as_chat_does_and_rounds_continue_in_one_cache",
    "pip install": "needs a network",
    "python -m lab.measure": "measures for hours: test_architecture.py::test_lab_modules_that_are_named_as_commands_exist",
    "python -m lab.scale": "test_architecture.py::test_lab_modules_that_are_named_as_commands_exist",
    "scripts/parity": "needs a network for kvpress",
    "scripts/quickstart": "makes an environment; what it grades: test_demo_model.py",
    "scripts/test": "runs this test",
}  # fmt: skip
"""Beginnings of commands that are not run here, and why, or the test that runs them in a smaller form."""


def test_every_documented_command_is_run_or_listed_with_the_reason() -> None:
    commands = documented()
    assert len(commands) > 30
    assert not [command for command in commands if command not in RUN and not command.startswith(tuple(ELSEWHERE))]
    assert not [command for command in RUN if command not in commands]
    assert not [start for start in ELSEWHERE if not any(command.startswith(start) for command in commands)]


def test_the_tests_that_are_named_as_reasons_exist() -> None:
    for reason in ELSEWHERE.values():
        for name, function in re.findall(r"(test_\w+\.py)(?:::(\w+))?", reason):
            assert f"def {function or 'test_'}" in (TOP / "tests" / name).read_text(), reason


@pytest.mark.parametrize("command", [command for command in documented() if command.startswith("edgemllm ")])
def test_a_documented_command_has_options_that_exist(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[name].make_context(name, arguments)  # refuses unknown options and malformed values


@pytest.mark.parametrize("command", RUN)
def test_a_documented_command_prints_what_it_should(command: str) -> None:
    code, words = RUN[command]
    done = run(*shlex.split(command)[1:], cwd=TOP)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


def test_the_python_of_the_readme_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(TOP)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "5"
