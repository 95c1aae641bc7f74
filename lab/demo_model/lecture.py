"""Make the sample lecture: a video of slides among drawn footage, and its questions with the right answers.

    python -m lab.demo_model.lecture edgemllm/assets/demo

writes lecture.mp4 and lecture.json there, always the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from edgemllm.media import slides

HEIGHT, WIDTH, FPS = 180, 320, 10
SLIDES = 11
SECONDS = 150


def scenes(rng: np.random.Generator) -> list[tuple[slides.Fact | None, int]]:
    """Return what is shown for how many seconds: slides, and footage between them. The third slide corrects itself later."""
    kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))[:SLIDES]]
    facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds]
    facts.append(slides.Fact(facts[2].kind, (facts[2].digit + 3) % 10))
    holds = [int(rng.integers(3, 6)) for _ in facts]
    gaps = rng.multinomial(SECONDS - sum(holds) - 2 * (len(facts) + 1), np.full(len(facts) + 1, 1 / (len(facts) + 1))) + 2
    shown: list[tuple[slides.Fact | None, int]] = [(None, int(gaps[0]))]
    for fact, hold, gap in zip(facts, holds, gaps[1:], strict=True):
        shown += [(fact, hold), (None, int(gap))]
    return shown


def write_video(path: Path, plan: list[tuple[slides.Fact | None, int]], rng: np.random.Generator) -> None:
    """Write MPEG-4 in mp4: every OpenCV reads it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    for fact, seconds in plan:
        if fact is None:
            # A scene a second or three; noise is left out, it alone would fill the file.
            left = seconds
            while left > 0:
                part = min(left, int(rng.integers(2, 6)))
                images = list(slides.footage(rng, part * 2, HEIGHT, WIDTH))
                if float(np.abs(np.diff(images[0].astype(np.int16), axis=1)).mean()) < 12:
                    for image in images:
                        for _ in range(FPS // 2):
                            writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
                    left -= part
        else:
            image = slides.draw(fact, HEIGHT, WIDTH, rng)
            for _ in range(seconds * FPS):
                noisy = image + rng.normal(0, 1.0, image.shape)
                writer.write(cv2.cvtColor(np.clip(noisy, 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR))
    writer.release()


def questions(facts: list[slides.Fact]) -> list[dict[str, str]]:
    """Return all four kinds, about what was shown and what was not."""
    known = {fact.kind for fact in facts}
    never = [kind for kind in slides.KINDS if kind not in known]
    asked = [("number", facts[i].kind) for i in (0, 1, 2, 4, 6, 9)]
    asked += [("number", never[3]), ("number", never[20]), ("seen", facts[5].kind), ("seen", never[9])]
    asked += [("list", facts[3].kind), ("screen", facts[0].kind)]
    return [{"question": slides.ask(topic, kind), "answer": slides.answer(topic, kind, facts)} for topic, kind in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rng = np.random.default_rng(2409)
    plan = scenes(rng)
    write_video(folder / "lecture.mp4", plan, rng)
    facts = [fact for fact, _ in plan if fact is not None]
    (folder / "lecture.json").write_text(json.dumps(questions(facts), indent=2) + "\n")
    size = (folder / "lecture.mp4").stat().st_size
    print(f"{folder / 'lecture.mp4'}: {sum(s for _, s in plan)} s, {len(facts)} slides, {size} bytes")


if __name__ == "__main__":
    main()
