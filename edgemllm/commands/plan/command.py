"""What `edgemllm plan` does: on one device, on all that have a profile, for one model or for all that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import typer

from edgemllm.commands import options
from edgemllm.commands.events import Events, headed, write
from edgemllm.commands.plan.report import arithmetic, table
from edgemllm.device import profiles
from edgemllm.errors import DoesNotFitError
from edgemllm.models import shipped
from edgemllm.models.facts import ModelFacts
from edgemllm.planning.decision import Decision, plan_only
from edgemllm.planning.lookup import facts_of
from edgemllm.planning.request import Request


def plan(run: options.RequestOptions, size: options.DetailOptions, output: options.JsonOptions) -> None:
    """Run the command."""
    request = run.request(detail=size.detail())
    if request.model == "all":
        _every_model(request)
    elif request.profile == "all":
        _every_profile(request, output.either)
    else:
        _one(request, output)


def _one(request: Request, output: options.JsonOptions) -> None:
    made = plan_only(request)
    code = 0 if made.plan.fits else 4
    if output.either:
        write(headed("plan", made.plan.as_json()))
        Events("plan", jsonl=output.jsonl).close(code, {})
    else:
        vision = f", vision in {made.vision_dtype}" if made.vision_dtype not in (None, made.dtype) else ""
        print(f"{request.model} on {made.profile.title}: {made.policy_name}, weights {made.quant}, {made.dtype}{vision}")
        print(arithmetic(made.plan))
    raise typer.Exit(code)


def over_profiles(request: Request, facts: ModelFacts | None = None) -> dict[str, Decision | DoesNotFitError]:
    """Plan for every device with a profile; the error where the KV budget alone is out of the question."""
    facts = facts or facts_of(request)
    found: dict[str, Decision | DoesNotFitError] = {}
    for name in profiles.names():
        if profiles.load(name).memory is None:
            continue  # what is free there is not known
        try:
            found[name] = plan_only(replace(request, profile=name), facts)
        except DoesNotFitError as error:
            found[name] = error
    return found


def _every_profile(request: Request, json: bool) -> None:
    found = over_profiles(request)
    if json:
        plans: list[dict[str, Any]] = []
        for name, made in found.items():
            body = {"error": made.message} if isinstance(made, DoesNotFitError) else _body(made)
            plans.append({"profile": name, "fits": False, **body})
        write(headed("plan", {"model": request.model, "plans": plans}))
    else:
        print(table(found))
    raise typer.Exit(0 if any(not isinstance(made, DoesNotFitError) and made.plan.fits for made in found.values()) else 4)


def _body(made: Decision) -> dict[str, Any]:
    return {"quant": made.quant, **made.plan.as_json()}


def _every_model(request: Request) -> None:
    """Return Markdown: a line for every known model, a column for every device, in a cell what the plan came to."""
    headed = False
    for name in filter(shipped.hub_id, shipped.names()):
        found = over_profiles(replace(request, model=f"{shipped.PREFIX}{name}"))
        if not headed:
            print(f"| model | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
            headed = True
        print(f"| {name} | {' | '.join(_cell(made) for made in found.values())} |", flush=True)


def _cell(made: Decision | DoesNotFitError) -> str:
    if isinstance(made, DoesNotFitError) or not made.plan.fits:
        return "-"
    return f"{made.quant} {made.plan.kv_budget_tokens}"
