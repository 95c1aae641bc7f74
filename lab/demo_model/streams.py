"""Training streams of the slide world: frames, rounds of questions, right answers, and what an eviction leaves of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgemllm.media import slides
from lab.demo_model.frames import SCENE

IGNORED = -100
ARTICLES = {True: "an", False: "a"}


class Bank(NamedTuple):
    """Where to find frames: rows of the feature table."""

    by_fact: dict[tuple[int, int], np.ndarray]
    """(kind, digit) to rows (m, 2): two frames of the same slide."""
    scenes: np.ndarray
    """(m, SCENE) rows of consecutive frames."""
    newline: int
    """Row of `image_newline`."""


class Stream(NamedTuple):
    """ids (n,), rows (n,) of the feature table or -1 where the token is text, labels (n,)."""

    ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


class Writer:
    """Samples streams of about a wanted length."""

    def __init__(self, tokenizer: Any, bank: Bank) -> None:
        self.tokenizer, self.bank = tokenizer, bank
        self.cache: dict[str, list[int]] = {}
        self.video = tokenizer.convert_tokens_to_ids("<video>")

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def footage(self, rng: np.random.Generator, count: int, diverse: bool) -> list[int]:
        rows: list[int] = []
        while len(rows) < count:
            scene = self.bank.scenes[int(rng.integers(len(self.bank.scenes)))]
            if diverse:
                rows.append(int(scene[int(rng.integers(SCENE))]))
            else:
                rows += [int(row) for row in np.repeat(scene, int(rng.integers(1, 4)))]
        return rows[:count]

    def segment(
        self, rng: np.random.Generator, facts: list[slides.Fact], frames: int, diverse: bool
    ) -> tuple[list[int], slides.Fact | None]:
        """Return frame rows with the facts spread over them; also what the last frame shows."""
        holds = [1 if rng.random() < 0.15 else int(rng.integers(2, 6)) for _ in facts]
        while holds and sum(holds) > frames:
            holds[int(np.argmax(holds))] -= 1
        spare = max(0, frames - sum(holds))
        gaps = rng.multinomial(spare, rng.dirichlet(np.ones(len(facts) + 1))) if facts else np.array([spare])
        if facts and rng.random() < 0.4:  # end on a slide
            gaps[0] += gaps[-1]
            gaps[-1] = 0
        rows = self.footage(rng, int(gaps[0]), diverse)
        for fact, hold, gap in zip(facts, holds, gaps[1:], strict=True):
            pair = self.bank.by_fact[slides.KINDS.index(fact.kind), fact.digit]
            both = pair[int(rng.integers(len(pair)))]
            rows += [int(both[int(rng.integers(2))]) for _ in range(hold)]
            rows += self.footage(rng, int(gap), diverse)
        last = facts[-1] if facts and holds[-1] > 0 and gaps[-1] == 0 else None
        return rows, last

    def question(
        self,
        rng: np.random.Generator,
        shown: list[slides.Fact],
        now: slides.Fact | None,
        share: float | None = None,
        first: bool = False,
    ) -> tuple[str, str]:
        """Return a question and its right answer. `share`: of number questions about shown slides, while a beginner learns."""
        odds = [0.48, 0.22, 0.14, 0.16] if share is None else [0.6, 0.08, 0.22, 0.1]
        if first and share is None:  # what is on the screen is mostly asked at once
            odds = [0.3, 0.2, 0.35, 0.15]
        topic = str(rng.choice(["number", "seen", "screen", "list"], p=odds))
        known = {fact.kind for fact in shown}
        kind = slides.KINDS[int(rng.integers(48))]
        if shown and rng.random() < ((share or 0.65) if topic == "number" else 0.5):
            kind = shown[int(rng.integers(len(shown)))].kind
        elif topic != "list" and len(known) < 40:
            while kind in known:
                kind = slides.KINDS[int(rng.integers(48))]
        phrasing = 0 if rng.random() < 0.5 else int(rng.integers(len(slides.PHRASINGS[topic])))
        article = ARTICLES[kind.colour == "orange"] if rng.random() < 0.5 else "a"
        return slides.ask(topic, kind, phrasing, article), slides.answer(topic, kind, shown, now)

    def drill(self, rng: np.random.Generator, length: int, slides_at_most: int) -> Stream:
        """Return slides, then every colour and shape with its digit after it: the bare look-up, seven tokens each."""
        most = min(slides_at_most, length // 7)
        facts = [
            slides.Fact(slides.KINDS[int(k)], int(rng.integers(10)))
            for k in rng.permutation(48)[: int(rng.integers(max(1, most // 2), most + 1))]
        ]
        ids: list[int] = []
        rows: list[int] = []
        for fact in facts:
            pairs = self.bank.by_fact[slides.KINDS.index(fact.kind), fact.digit]
            row = int(pairs[int(rng.integers(len(pairs))), int(rng.integers(2))])
            ids += [self.video] * 4
            rows += range(row * 4, row * 4 + 4)
        labels = [IGNORED] * len(ids)
        for number in rng.permutation(len(facts)):
            asked = [*self.encode(f" {facts[number].kind.colour}"), *self.encode(f" {facts[number].kind.shape}")]
            answer = self.encode(str(facts[number].digit))
            ids += [*asked, *answer]
            labels += [IGNORED] * len(asked) + answer
        rows += [-1] * (len(ids) - len(rows))
        return Stream(np.array(ids), np.array(rows), np.array(labels))

    def quiz(self, rng: np.random.Generator, length: int, slides_at_most: int) -> Stream:
        """Return slides between footage, then short questions on shown and absent kinds: three or four tokens per answer."""
        known = max(1, min(slides_at_most, length // 18))
        kinds = [slides.KINDS[int(k)] for k in rng.permutation(48)]
        shown = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds[: int(rng.integers((known + 1) // 2, known + 1))]]
        asked = kinds[: len(shown) + int(rng.integers(len(shown) // 2, 3 * len(shown) // 2 + 4))]
        if len(shown) > 2 and rng.random() < 0.3:  # shown again with another number: the later one counts
            shown.append(slides.Fact(shown[int(rng.integers(len(shown) - 1))].kind, int(rng.integers(10))))
        topic, mark = ("seen", self.encode("?")) if rng.random() < 0.3 else ("number", [])
        room = (length - len(asked) * (3 + len(mark))) // 4
        frames = max(len(shown), int(room * rng.uniform(0.6, 1)))
        ids: list[int] = []
        rows: list[int] = []
        for row in self.segment(rng, shown, frames, rng.random() < 0.5)[0]:
            ids += [self.video] * 4
            rows += range(row * 4, row * 4 + 4)
        labels = [IGNORED] * len(ids)
        for number in rng.permutation(len(asked)):
            kind = asked[number]
            words = [*self.encode(f" {kind.colour}"), *self.encode(f" {kind.shape}"), *mark]
            answer = self.encode(slides.answer(topic, kind, shown))[:1]
            ids += [*words, *answer]
            labels += [IGNORED] * len(words) + answer
        rows += [-1] * (len(ids) - len(rows))
        return Stream(np.array(ids), np.array(rows), np.array(labels))

    def stream(
        self,
        rng: np.random.Generator,
        length: int,
        slides_at_most: int,
        share: float | None = None,
        dense: bool = False,
    ) -> Stream:
        """Return one conversation, cut or padded to `length` by the caller; `dense`: nearly all of it questions."""
        ids: list[int] = []
        rows: list[int] = []
        labels: list[int] = []

        def text(words: str, learn: bool = False) -> None:
            new = self.encode(words)
            ids.extend(new)
            rows.extend([-1] * len(new))
            labels.extend(new if learn else [IGNORED] * len(new))

        rounds = int(rng.choice([1, 1, 2, 3]))
        questions = max(4, int(length * (0.88 if dense else rng.uniform(0.35, 0.75)) / 22))
        frames = max(4, (length - questions * 22) // 4)
        diverse = rng.random() < 0.5
        most = max(1, min(slides_at_most, int(frames * 0.6), 44))
        kinds = rng.permutation(48)[: int(rng.integers(1, most + 1))]
        facts = [slides.Fact(slides.KINDS[int(k)], int(rng.integers(10))) for k in kinds]
        if len(facts) > 2 and rng.random() < 0.3:
            facts.append(slides.Fact(facts[int(rng.integers(len(facts) - 1))].kind, int(rng.integers(10))))
        thin = rng.random() < 0.3
        shown: list[slides.Fact] = []
        now = None
        for part in range(rounds):
            mine = facts[part::rounds] if rounds > 1 else facts
            text("<|im_start|>user\n")
            seen_rows, now = self.segment(rng, mine, frames // rounds, diverse)
            if thin and len(seen_rows) > 6:  # an eviction took footage away, whole frames or single tokens
                keep = rng.random(len(seen_rows)) < rng.uniform(0.3, 1.0)
            else:
                keep = np.ones(len(seen_rows), bool)
            fact_rows = {int(r) for f in mine for r in self.bank.by_fact[slides.KINDS.index(f.kind), f.digit].flat}
            for place, row in enumerate(seen_rows):
                if keep[place] or row in fact_rows or place >= len(seen_rows) - 8:
                    ids.extend([self.video] * 4)
                    rows.extend(range(row * 4, row * 4 + 4))
                    labels.extend([IGNORED] * 4)
            ids.append(self.video)
            rows.append(self.bank.newline)
            labels.append(IGNORED)
            shown = shown + mine
            for number in range(max(1, questions // rounds)):
                asked, answer = self.question(rng, shown, now, share, number == 0)
                text(("" if number == 0 else "<|im_start|>user\n") + asked + "<|im_end|>\n<|im_start|>assistant\n")
                text(answer + "<|im_end|>", learn=True)
                text("\n")
        return Stream(np.array(ids), np.array(rows), np.array(labels))

    def batch(
        self,
        rng: np.random.Generator,
        talks: int,
        drills: int,
        length: int,
        slides_at_most: int,
        share: float | None = None,
        dense: float = 0,
    ) -> Stream:
        """Return conversations, then drills (quizzes where rows are long enough), padded to (talks + drills, length)."""
        count = talks + drills
        ids, rows = np.zeros((count, length), np.int64), np.full((count, length), -1)
        labels = np.full((count, length), IGNORED)
        for i in range(count):
            if i < talks:
                one = self.stream(rng, length - 16, slides_at_most, share, rng.random() < dense)
            else:
                one = (self.drill if length < 128 else self.quiz)(rng, length, slides_at_most)
            n = min(length, len(one.ids))
            ids[i, :n], rows[i, :n], labels[i, :n] = one.ids[:n], one.rows[:n], one.labels[:n]
        return Stream(ids, rows, labels)
