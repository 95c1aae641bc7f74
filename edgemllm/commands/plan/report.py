"""A plan as text and as JSON."""

from __future__ import annotations

import typer

from edgemllm.commands.events import headed, write
from edgemllm.commands.tables import aligned
from edgemllm.device.memory import human_bytes
from edgemllm.errors import DoesNotFitError
from edgemllm.planning.decision import Decision
from edgemllm.planning.plan import Plan


def stop_after(launch: Decision, json: bool) -> None:
    """End a command with its plan: exit 0 if it fits, 4 if not."""
    if json:
        write(headed("plan", launch.plan.as_json()))
    else:
        print(arithmetic(launch.plan))
    raise typer.Exit(0 if launch.plan.fits else 4)


def arithmetic(made: Plan) -> str:
    """Show the sum, a part a line."""
    parts = [
        ("weights", made.weights_bytes, ""),
        ("vision", made.vision_bytes, "peak while encoding a frame"),
        ("activations", made.activation_bytes, "peak of one prefill chunk"),
        ("kv cache", made.kv_bytes, _cache(made)),
        ("margin", made.margin_bytes, "left free"),
        ("total", made.total_bytes, ""),
        ("free", made.free_bytes, made.where),
    ]
    if made.host_peak_bytes is not None:
        parts.append(("loading", made.host_peak_bytes, "host memory at most while the file is converted"))
    lines = [f"  {name:12}{human_bytes(count):>12}  {note}".rstrip() for name, count, note in parts]
    if made.decode_tps_ceiling:
        lines.append(f"  at most {made.decode_tps_ceiling:.3g} tokens/s while decoding (memory bandwidth)")
    else:
        lines.append("  decoding speed: no ceiling from memory bandwidth (it is unknown, or the model too small to be limited)")
    lines.append("fits" if made.fits else "does not fit")
    lines += [f"  try: {suggestion}" for suggestion in made.suggestions]
    return "\n".join(lines)


def _cache(made: Plan) -> str:
    """Describe the cache, and what of it no policy manages."""
    text = f"{made.kv_budget_tokens} tokens per layer, {made.kv_bytes_per_token} bytes per token"
    if made.managed_layers < made.layers:
        text += f" in {made.managed_layers} of {made.layers} layers"
    if made.state_bytes:
        text += f", and {human_bytes(made.state_bytes)} of constant states"
    return text


def table(found: dict[str, Decision | DoesNotFitError]) -> str:
    """Show a line for every device."""
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
