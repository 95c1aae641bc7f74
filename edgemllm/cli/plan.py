"""`edgemllm plan`: what fits, before anything is loaded."""

from __future__ import annotations

import json as json_module

import typer

from edgemllm.cli import options
from edgemllm.device.plan import Plan


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
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    verbose: options.Verbose = False,
) -> None:
    """Show what a run needs and whether it fits. Exit 4 if it does not."""
    from edgemllm.cli.main import quiet_libraries
    from edgemllm.launch import Request, prepare

    quiet_libraries(verbose)
    request = Request(model, profile, policy, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code)
    launch = prepare(request, plan_only=True)
    if json or jsonl:
        print(json_module.dumps(launch.plan.as_json()))
        if jsonl:
            print(json_module.dumps({"schema": "edgemllm/1", "event": "end", "exit_code": 0 if launch.plan.fits else 4}))
    else:
        print(f"{model} on {launch.profile.title}: {launch.policy_name}, weights {launch.quant}, {launch.dtype}")
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
    lines.append("fits" if made.fits else "does not fit")
    lines += [f"  try: {suggestion}" for suggestion in made.suggestions]
    return "\n".join(lines)
