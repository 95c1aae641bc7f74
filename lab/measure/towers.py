"""Milliseconds that a vision tower takes per frame, by dtype and frames at once; all of them take turns.

    python -m lab.measure.towers random:smolvlm2-0.5b --at-once 1 4 --rounds 3
    python -m lab.measure.towers random:smolvlm2-0.5b --hidden 192    the same tower, 192 wide
    python -m lab.measure.towers demo
    python -m lab.measure.towers random:smolvlm2-0.5b --quant int4 --whole --sides float32 bfloat16 --at-once 1
    python -m lab.measure.towers demo --sides float32 bfloat16 --rounds 1 --watch 300    what the language model makes of it

The language model is in float32. `int8` packs the linear layers of the tower (activations in float32), which edgemllm itself
never does. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment shows the same processor without AMX.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from edgemllm.cache.chunk import Modality
from edgemllm.media.frame import Frame
from edgemllm.media.video import Video
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.packed import packed
from edgemllm.models.tower import outside
from edgemllm.policies.full import Full
from edgemllm.policies.streaming_llm import StreamingLLM
from edgemllm.session import Session
from lab.measure import pages
from lab.measure.ratios import table, turns

SIDES = ("float32", "bfloat16", "int8")


class Tower:
    """A model's tower in one dtype, fed `count` frames at once."""

    def __init__(self, family: ModelFamily, dtype: str, count: int) -> None:
        self.family, self.name = family, f"{dtype}, {count} at once"
        noise = np.random.default_rng(0).integers(0, 256, (count, 360, 640, 3), np.uint8)
        self.frames = [Frame(pixels, float(second), second) for second, pixels in enumerate(noise)]

    def __str__(self) -> str:
        return self.name

    def per_frame(self) -> float:
        """Return the milliseconds of a frame, preparation included."""
        began = time.perf_counter()
        self.embeds()
        return (time.perf_counter() - began) * 1e3 / len(self.frames)

    def per_frame_seen(self) -> float:
        """Return the milliseconds of a frame until it is in the cache: tower, language model and eviction."""
        began = time.perf_counter()
        self.session.see(self.frames)
        return (time.perf_counter() - began) * 1e3 / len(self.frames)

    @cached_property
    def session(self) -> Session:
        """A session of 2,048 slots."""
        return Session(self.family, StreamingLLM(), 2048)

    def embeds(self) -> torch.Tensor:
        """Return what the language model is given for the frames."""
        clip = self.family.video()
        chunk = clip.frames(self.frames, 0) or clip.end(0)
        assert chunk is not None
        return chunk.embeds[chunk.modality == Modality.VISION]


def loaded(checkpoint: loading.Checkpoint, side: str, quant: str) -> ModelFamily:
    """Return a model whose tower is in the dtype of a side."""
    family = loading.load(checkpoint, quant, vision_dtype=None if side == "int8" else side)
    if side == "int8":
        for parent in list(outside(family.model)):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear and child is not family.model.get_output_embeddings():
                    setattr(parent, name, packed(child, "int8"))
    return family


def found(model: str, hidden: int | None) -> loading.Checkpoint:
    """Return a model, its tower `hidden` wide with heads of 64."""
    checkpoint = loading.locate(model)
    if hidden is not None:
        if checkpoint.folder is not None:
            raise SystemExit("--hidden needs random weights: a model random:NAME")
        vision = checkpoint.config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = hidden, 4 * hidden, hidden // 64
        checkpoint = replace(checkpoint)  # counts anew
    print(f"{checkpoint.spec.vision_parameters:,} parameters outside the language model")
    return checkpoint


def drift(towers: Sequence[Tower]) -> str:
    """Return how far what each tower gives is from what the first gives, by the spread of the first."""
    first = towers[0].embeds()
    return "\n".join(f"{tower}: off by {float((tower.embeds() - first).norm() / first.norm()):.4f}" for tower in towers[1:])


def logits(family: ModelFamily, count: int) -> torch.Tensor:
    """Return the logits (q, V) of the sample lecture's questions and right answers, after `count` of its frames at most."""
    session = Session(family, Full(), None)
    session.watch(Video.open(loading.DEMO / "lecture.mp4", max_frames=count))
    asked = json.loads((loading.DEMO / "lecture.json").read_text())
    return torch.cat([family.logits(hidden)[0] for each in asked for hidden in session.put(each["question"], each["answer"])])


def heard(families: Mapping[str, ModelFamily], count: int) -> str:
    """Return how far the logits of each side are from those of the first."""
    (_, first), *others = [(side, logits(family, count)) for side, family in families.items()]
    lines = [f"{len(first)} places, logits of a standard deviation of {float(first.std()):.3f}"]
    for side, found in others:
        off, same = (found - first).abs(), int((found.argmax(-1) == first.argmax(-1)).sum())
        lines.append(f"{side}: off by {float(off.mean()):.5f}, at most {float(off.max()):.4f}; the same token first at {same}")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--quant", default="none", help="Weights of the language model.")
    parser.add_argument("--whole", action="store_true", help="Time frames until they are in the cache, not the tower alone.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--watch", type=int, default=0, help="Frames of the lecture before its questions; 0: none asked.")
    options = parser.parse_args()
    checkpoint = found(options.model, options.hidden)
    families = {side: loaded(checkpoint, side, options.quant) for side in options.sides}
    towers = [Tower(family, dtype, count) for dtype, family in families.items() for count in options.at_once]
    print(f"{pages.machine()}, {torch.get_num_threads()} threads\n")
    print(drift([tower for tower in towers if len(tower.frames) == options.at_once[0]]))
    if options.watch:
        print(heard(families, options.watch))
    timed = Tower.per_frame_seen if options.whole else Tower.per_frame
    print(table(turns(towers, timed, options.rounds, model=options.model)))


if __name__ == "__main__":
    main()
