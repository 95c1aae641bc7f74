"""Versions of what edgemllm needs: against the ranges that it declares, and those that its tests were run with."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemllm.commands.doctor import cures
from edgemllm.commands.doctor.check import Check
from edgemllm.commands.doctor.machine import Machine
from edgemllm.device.profiles import configs_folder

if TYPE_CHECKING:
    from packaging.requirements import Requirement

REPORTED = ("torch", "opencv-python-headless")
"""Where they are missing, lines of their own say so; another OpenCV serves as well."""
DEVELOPMENT = "dev"


def versions(machine: Machine) -> Check:
    """Compare what is installed with what is declared and with what was tested."""
    if _installed("packaging") is None:
        return Check("versions", "fails", "packaging is not installed", ("pip install packaging",))
    wrong, other, wanted = [], [], []
    tested = tested_versions()
    for requirement, optional in declared():
        name, found = requirement.name, _installed(requirement.name)
        if found is None:
            if optional or name in REPORTED:
                continue
            wrong.append(f"{name} is not installed")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{name} {found} is not {requirement.specifier}")
        else:
            if tested.get(name, found) != found.partition("+")[0]:
                other.append(f"{name} {found} ({tested[name]})")
            continue
        wanted.append(requirement)
    if wrong:
        return Check("versions", "fails", "; ".join(wrong), _cures(wanted, machine))
    if other:
        return Check("versions", "ok", f"all in their ranges; others than the tested ones: {', '.join(other)}")
    return Check("versions", "ok", "all those that were tested")


def _cures(wanted: list[Requirement], machine: Machine) -> tuple[str, ...]:
    """Return what to type for requirements that are not met; torch comes from where this machine has it from."""
    others = " ".join(f"'{each.name}{each.specifier}'" for each in wanted if each.name != "torch")
    torch = cures.torch(machine) if any(each.name == "torch" for each in wanted) else ()
    return (*torch, f"pip install {others}") if others else torch


def declared() -> list[tuple[Requirement, bool]]:
    """Return what edgemllm requires on this Python, and whether it is of an extra: of the wheel, or of the checkout."""
    from packaging.requirements import Requirement

    found: dict[str, tuple[Requirement, bool]] = {}
    for text in _declarations():
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        if requirement.name == "edgemllm" or f'"{DEVELOPMENT}"' in marker:
            continue
        base = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if base or "extra" in marker:
            found.setdefault(requirement.name, (requirement, not base))
    return list(found.values())


def _declarations() -> list[str]:
    project = Path(__file__).parents[3] / "pyproject.toml"
    if not project.is_file():
        return list(requires("edgemllm") or ())
    try:
        toml: Any = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        toml = importlib.import_module("tomli")
    table = toml.loads(project.read_text(encoding="utf-8"))["project"]
    extras = table["optional-dependencies"].items()
    return [*table["dependencies"], *(f'{each}; extra == "{name}"' for name, group in extras for each in group)]


def tested_versions() -> dict[str, str]:
    """Return the versions that the tests were run with on this Python."""
    from packaging.requirements import Requirement

    file = configs_folder() / "locked.txt"
    file = file if file.is_file() else configs_folder().parent / "scripts" / "locked.txt"
    found = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        if line and line[0].isalnum():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name] = str(requirement.specifier).removeprefix("==").partition("+")[0]
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
