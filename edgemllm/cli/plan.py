"""`edgemllm plan`: what fits, before anything is loaded; on one device, or on all that have a profile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from edgemllm.cli import options
from edgemllm.commands.events import Events, headed, write
from edgemllm.commands.tables import aligned
from edgemllm.errors import DoesNotFitError

if TYPE_CHECKING:
    from edgemllm.launch import Launch, Request
    from edgemllm.models.loading import Checkpoint
    from edgemllm.planning.plan import Plan


def plan(
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policy = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "auto",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    max_pixels: options.MaxPixels = None,
    tokens_per_frame: options.TokensPerFrame = None,
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    verbose: options.Verbose = False,
) -> None:
    """Show what a run needs and whether it fits. Exit 4 if it does not.

    --profile all: a table over every device; with --model all, of every known model.
    """
    from edgemllm.launch import Request, prepare
    from edgemllm.media.detail import Detail

    request = Request(
        model, profile, policy, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code,
        detail=Detail(max_pixels, tokens_per_frame),
    )  # fmt: skip
    if model == "all":
        _every_model(request)
        return
    if profile == "all":
        _every_profile(request, json or jsonl)
        return
    launch = prepare(request, plan_only=True)
    if json or jsonl:
        write(headed("plan", launch.plan.as_json()))
        Events("plan", jsonl=jsonl).close(0 if launch.plan.fits else 4, {})
    else:
        print(f"{model} on {launch.profile.title}: {launch.policy_name}, weights {launch.quant}, {launch.dtype}")
        print(arithmetic(launch.plan))
    raise typer.Exit(0 if launch.plan.fits else 4)


def dry_run(launch: Launch, json: bool) -> None:
    """End a command with its plan: exit 0 if it fits, 4 if not."""
    if json:
        write(headed("plan", launch.plan.as_json()))
    else:
        print(arithmetic(launch.plan))
    raise typer.Exit(0 if launch.plan.fits else 4)


def arithmetic(made: Plan) -> str:
    """The sum, a part a line."""
    from edgemllm.device.memory import human_bytes

    parts = [
        ("weights", made.weights_bytes, ""),
        ("vision", made.vision_bytes, "peak while encoding a frame"),
        ("activations", made.activation_bytes, "peak of one prefill chunk"),
        ("kv cache", made.kv_bytes, f"{made.kv_budget_tokens} tokens a layer, {made.kv_bytes_per_token} bytes a token"),
        ("margin", made.margin_bytes, "left free"),
        ("total", made.total_bytes, ""),
        ("free", made.free_bytes, made.where),
    ]
    lines = [f"  {name:12}{human_bytes(count):>12}  {note}".rstrip() for name, count, note in parts]
    if made.decode_tps_ceiling:
        lines.append(f"  at most {made.decode_tps_ceiling:.3g} tokens/s while decoding (memory bandwidth)")
    else:
        lines.append("  decoding speed: no ceiling from memory bandwidth (it is unknown, or the model too small to be limited)")
    lines.append("fits" if made.fits else "does not fit")
    lines += [f"  try: {suggestion}" for suggestion in made.suggestions]
    return "\n".join(lines)


# ---- tables ------------------------------------------------------------------------------------------------------------


def over_profiles(request: Request, checkpoint: Checkpoint | None = None) -> dict[str, Launch | DoesNotFitError]:
    """The plan on every device with a profile; the error where the KV budget alone is out of the question."""
    from edgemllm.device import profiles
    from edgemllm.launch import prepare
    from edgemllm.models.loading import locate

    checkpoint = checkpoint or locate(request.model, request.offline, request.trust_remote_code)
    found: dict[str, Launch | DoesNotFitError] = {}
    for name in profiles.names():
        if profiles.load(name).memory is None:
            continue  # what is free there is not known
        try:
            found[name] = prepare(replace(request, profile=name), plan_only=True, checkpoint=checkpoint)
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


def _body(launch: Launch) -> dict[str, Any]:
    return {"quant": launch.quant, **launch.plan.as_json()}


def table(found: dict[str, Launch | DoesNotFitError]) -> str:
    """A line for every device."""
    head = ("profile", "quant", "weights", "vision", "activ.", "kv", "total", "free", "kv tokens", "tok/s <=", "verdict")
    rows: list[tuple[str, ...]] = [head]
    for name, made in found.items():
        if isinstance(made, DoesNotFitError):
            rows.append((name, *[""] * 9, made.message))
            continue
        plan = made.plan
        sizes = (plan.weights_bytes, plan.vision_bytes, plan.activation_bytes, plan.kv_bytes, plan.total_bytes, plan.free_bytes)
        speed = f"{plan.decode_tps_ceiling:.0f}" if plan.decode_tps_ceiling else "-"
        verdict = "fits" if plan.fits else "does not fit"
        rows.append((name, made.quant, *(f"{size / 2**30:.2f}" for size in sizes), str(plan.kv_budget_tokens), speed, verdict))
    note = "bytes in GiB; tok/s: what memory bandwidth allows at most while decoding; -: unknown, or not the limit"
    return "\n".join([*aligned(rows, left=(0, 1, len(head) - 1)), note])


def _every_model(request: Request) -> None:
    """Markdown: a line for every known model, a column for every device, in a cell what the plan came to."""
    from edgemllm.models import shipped

    headed = False
    for name in filter(shipped.hub_id, shipped.names()):
        found = over_profiles(replace(request, model=f"{shipped.PREFIX}{name}"))
        if not headed:
            print(f"| model | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
            headed = True
        print(f"| {name} | {' | '.join(_cell(made) for made in found.values())} |", flush=True)


def _cell(made: Launch | DoesNotFitError) -> str:
    if isinstance(made, DoesNotFitError) or not made.plan.fits:
        return "-"
    return f"{made.quant} {made.plan.kv_budget_tokens}"
