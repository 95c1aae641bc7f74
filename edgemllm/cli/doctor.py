"""`edgemllm doctor`: what works on this machine, and what does not."""

from __future__ import annotations

from edgemllm.commands import options
from edgemllm.commands.doctor import command


def doctor(json: options.Json = False) -> None:
    """Check this machine, and say what to type for each problem.

    Libraries and a kernel of each are tried in processes of their own, with a time limit. Exit 7 if something will not work.
    """
    command.doctor(json)
