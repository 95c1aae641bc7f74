"""Several policies side by side: the same bytes of KV cache, the same chunks, one set of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edgemllm import policies
from edgemllm.errors import UsageError
from edgemllm.launch import Launch, prepare
from edgemllm.planning.plan import Plan
from edgemllm.planning.request import Request


def line_up(
    request: Request,
    names: Sequence[str],
    tokens: int | None,
    budgets: Sequence[int | None] | None = None,
    reference: bool = False,
) -> list[Launch]:
    """Return a launch for each policy, over an input of `tokens`.

    One policy gets what `--kv-budget` says. Several get the same bytes: those of the budget's tokens when nothing but
    keys, values and positions is kept, so that a policy which also keeps notes or queries gets fewer tokens. A policy
    that never evicts runs as far as these bytes go, or memory where no budget was given. `budgets`: the tokens that each
    had before, in a run that continues, whatever is free now. `reference`: a policy that never evicts has no budget, and the
    others get theirs as if it were not there.
    Raises as `prepare` does.
    """
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UsageError(f"--policy names {', '.join(sorted(repeated))} twice", "each policy once")
    settings = _settings(request.settings, names)
    if request.chunk == 1:  # what papers measure: room for one token is made at every token
        settings = {name: own if _given("slack", own) else [*own, "slack=1"] for name, own in settings.items()}
    known = None if tokens is None else tokens + 1  # the first is read, not scored

    def of(name: str, budget: str, length: int | None) -> Launch:
        asked = dataclasses.replace(request, policy=name, settings=settings.get(name, ()), kv_budget=budget)
        return prepare(asked, lambda config: length)

    if budgets is not None and len(budgets) == len(names):
        return _same_chunk([of(name, str(budget or "auto"), known) for name, budget in zip(names, budgets, strict=True)])
    free = [name for name in names if reference and not _policy(name).bounded]
    held = [name for name in names if name not in free]
    shared = request.kv_budget
    if len(held) > 1:
        shared = f"{of('window', request.kv_budget, known).plan.kv_bytes}b"
    launches = []
    for name in names:
        if name in free or len(names) == 1:
            launches.append(of(name, "auto" if name in free else shared, known))
            continue
        bounded = _policy(name).bounded
        unlimited = not bounded and request.kv_budget.strip().lower() in ("", "auto")
        launches.append(of(name, "auto" if unlimited else shared, known if bounded else None))
    return _same_chunk(launches)


def half_or_least(request: Request, names: Sequence[str], tokens: int) -> list[Launch]:
    """Call `line_up` with half of the input as the budget, or with as many bytes as the neediest of the policies must have."""
    settings = _settings(request.settings, names)

    def plan_of(name: str, own: Sequence[str], size: int) -> Plan:
        return prepare(dataclasses.replace(request, policy=name, settings=own, kv_budget=str(size))).plan

    half = plan_of("window", (), max(tokens // 2, _policy("window")().minimum() + 1))
    needed = half.kv_bytes
    for name in names:
        policy = policies.build(name, settings[name])
        if policy.bounded:
            needed = max(needed, plan_of(name, settings[name], policy.minimum() + 1).kv_bytes)
    budget = half.kv_budget_tokens - (half.kv_bytes - needed) // half.kv_bytes_per_token  # rounded up
    return line_up(dataclasses.replace(request, kv_budget=str(budget)), names, tokens)


def with_focus(launches: Sequence[Launch], questions: int, tokens: int) -> list[Launch]:
    """Return launches of the same bytes in which policies that take a focus have room for as many questions."""
    found = [
        prepare(dataclasses.replace(launch.request, focus=("to be known",) * questions), lambda _: tokens, launch.checkpoint)
        if launch.policy.takes_focus
        else launch
        for launch in launches
    ]
    chunk = min(launch.chunk for launch in (*launches, *found))
    return [dataclasses.replace(launch, chunk=chunk) for launch in found]


def check_fit(launches: Sequence[Launch]) -> None:
    """Raise the DoesNotFitError of the first plan that does not fit, before anything is loaded."""
    for launch in launches:
        if not launch.plan.fits:
            raise launch.plan.error()


def _same_chunk(launches: list[Launch]) -> list[Launch]:
    chunk = min(launch.chunk for launch in launches)
    return [dataclasses.replace(launch, chunk=chunk) for launch in launches]  # smaller than planned: the plans hold


def _settings(settings: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return `key=value` for every policy that has the key, `policy.key=value` for that one."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        place, _, value = setting.partition("=")
        policy, dot, key = place.rpartition(".")
        if dot and policy not in found:
            raise UsageError(f"--set {setting}: {policy} is not among the policies", f"--policy {','.join([*names, policy])}")
        takers = [policy] if dot else [name for name in names if key.strip().replace("-", "_") in _fields(name)]
        for name in takers or names[:1]:  # nobody takes it: the first policy says so
            found[name].append(f"{key}={value}" if "=" in setting else setting)
    return found


def _given(key: str, settings: Sequence[str]) -> bool:
    return any(setting.partition("=")[0].strip() == key for setting in settings)


def _fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_policy(name))}


def _policy(name: str) -> Any:
    return policies.find(name)
