"""One model: its sizes, what it takes, and the devices that it fits."""

from __future__ import annotations

from pathlib import Path

from edgemllm.choices import QUANTISATIONS
from edgemllm.commands.plan.command import over_profiles
from edgemllm.commands.plan.report import table
from edgemllm.device.memory import human_bytes
from edgemllm.errors import MissingError
from edgemllm.models import shipped
from edgemllm.planning.lookup import facts_of
from edgemllm.planning.request import Request


def show(name: str) -> None:
    """Print them. Raises MissingError for an unknown name."""
    model = shipped.architecture(name)
    close = shipped.matching(name)
    if model == name != "demo" and close and "/" not in name and not Path(name).exists():
        raise MissingError(f"no model named {name}", f"edgemllm models {' | '.join(close)}")
    request = Request(model, offline=True)
    facts = facts_of(request)
    spec, sizes = facts.spec, facts.sizes
    inputs = ["text"]
    inputs += [f"images (up to {sizes.image_tokens} tokens)"] if sizes.image_tokens else []
    inputs += [f"video (up to {sizes.frame_tokens} tokens a frame)"] if sizes.frame_tokens else []
    count = f"{spec.parameters / 1e6:,.1f} million" if spec.parameters < 1e8 else f"{spec.parameters / 1e9:.2f} billion"
    print(f"{name}: {spec.model_type}, {count} parameters, {', '.join(inputs)}")
    weights = [f"{quant} {human_bytes(spec.weights_bytes(quant, 'bfloat16'))}" for quant in QUANTISATIONS]
    print(f"weights: {', '.join(weights)}" if not facts.prequantised_with else f"weights: {facts.prequantised_with}")
    print(table(over_profiles(request, facts)))
