"""Train the embedded demo model from nothing; every phase is seeded and continues from its last checkpoint.

    python -m lab.demo_model.train --text novels/ --footage videos/ --work build/demo

Phases: tokenizer, text (prose alone), frames (slides and footage), vision (reading a slide),
align (in the words of the language model), joint (looking slides up in
streams while reading on), export. `--only PHASE` runs one. `python -m lab.demo_model.evaluate` measures the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

HELD_OUT = ("yoga.mp4", "frog.mp4", "bottle-detection.mp4")
"""Footage that is never trained on: the evaluation splices slides into it."""
PHASES = ("tokenizer", "text", "frames", "vision", "align", "joint", "export")


def run(phase: str, options: argparse.Namespace) -> None:
    """Run one phase; what is already there is not made again."""
    from lab.demo_model import align, export, frames, joint, language, vision

    work: Path = options.work
    if phase == "tokenizer" and not (work / "text_tokens.npy").exists():
        if options.start:
            AutoTokenizer.from_pretrained(options.start).save_pretrained(work / "tokenizer")
        else:
            language.train_tokenizer(options.text, work)
        language.encode_text(options.text, work)
    elif options.start and phase in ("text", "vision", "align"):
        return
    elif phase == "text":
        language.train_text(work, options.minutes * 0.35, options.seed, steps=1400)
    elif phase == "frames" and not (work / "slides.npz").exists():
        frames.make_pools(options.footage, HELD_OUT, work, options.seed + 1)
    elif phase == "vision" and not (work / "vision.pt").exists():
        vision.train_vision(work, options.vision_steps, options.seed + 2)
    elif phase == "align" and not (work / "aligned.pt").exists():
        align.train_align(work, work / "vision.pt", options.align_steps, options.seed + 4)
    elif phase == "joint":
        joint.train_joint(work, options.minutes * (1 if options.start else 0.45), options.seed + 3, options.start)
    elif phase == "export":
        model = LlavaOnevisionForConditionalGeneration(vision.config())
        model.load_state_dict(torch.load(work / "joint.pt", weights_only=True))
        export.export(model, work, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt files of English prose")
    parser.add_argument("--footage", type=Path, help="folder of real videos to use as footage")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="checkpoints of the phases")
    parser.add_argument("--out", type=Path, default=Path("edgemllm/assets/demo"))
    parser.add_argument("--minutes", type=float, default=100, help="for the whole training, on two cores")
    parser.add_argument("--vision-steps", type=int, default=2500)
    parser.add_argument("--align-steps", type=int, default=1000)
    parser.add_argument("--from", dest="start", type=Path, help="continue the joint phase from a finished checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PHASES)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for phase in [options.only] if options.only else PHASES:
        run(phase, options)


if __name__ == "__main__":
    main()
