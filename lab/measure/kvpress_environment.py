"""An environment of its own for kvpress, which needs another transformers than this project.

It lies in .venv-kvpress (EDGEMLLM_KVPRESS_VENV names another folder) and is made the first time it is asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.measure.pages import TOP

PACKAGES = ("torch", "transformers<5.3", "kvpress==0.5.5")


def python() -> str:
    """Give the path of its Python; make the environment where there is none. Ends the program where that fails."""
    folder = Path(os.environ.get("EDGEMLLM_KVPRESS_VENV", TOP / ".venv-kvpress"))
    path, done = str(folder / "bin" / "python"), folder / ".installed"
    if done.exists():
        return path
    print(f"making {folder} (the first time takes a few minutes) ...", file=sys.stderr)
    pip = [path, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", str(TOP / "scripts" / "torch.txt"), *PACKAGES]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{folder} could not be made; the message is above")
    done.touch()
    return path


def run(module: str, *arguments: object) -> str:
    """Run a module of this folder there, and give its stdout. Ends the program with the module's exit code where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python(), "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout
