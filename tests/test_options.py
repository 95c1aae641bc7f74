"""Groups of options: spread into the signature that typer reads, gathered for the command."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.testing import CliRunner

from edgemllm.cli.groups import grouped
from edgemllm.cli.main import app
from edgemllm.commands.options import ClipOptions, ComparedOptions, RequestOptions


def test_a_group_stands_in_its_place_and_comes_back_whole() -> None:
    came: list[Any] = []

    @grouped(fps=2.0)
    def command(*, first: str = "a", clip: ClipOptions, last: str = "z") -> None:
        came.extend([first, clip, last])

    assert list(inspect.signature(command).parameters) == ["first", "fps", "max_frames", "start", "end", "last"]
    one = typer.Typer()
    one.command()(command)
    assert CliRunner().invoke(one, ["--start", "1:30", "--last", "y"]).exit_code == 0
    assert came == ["a", ClipOptions(fps=2.0, start="1:30"), "y"]
    assert came[1].of() == {"fps": 2.0, "max_frames": None, "start": 90.0, "end": None}


def test_lists_are_not_shared_between_two_runs() -> None:
    first, second = RequestOptions(), RequestOptions()
    first.set.append("slack=1")
    assert second.request().settings == []


def test_several_policies_are_named_or_come_from_the_profile() -> None:
    assert ComparedOptions(policy="edge, window").policies == ["edge", "window"]
    assert ComparedOptions(profile="orin-nano-8gb").policies == ["inf-mllm"]


def test_every_option_of_a_command_has_its_environment_name() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = [each for command in commands.values() for each in command.params if each.param_type_name == "option"]
    assert len(options) > 150
    for option in options:
        assert option.envvar == "EDGEMLLM_" + option.opts[0].strip("-").upper().replace("-", "_")
