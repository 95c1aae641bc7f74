"""The facts that text can state: codes to complete, and forms that a small language model can answer when asked in a chat."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgemllm.commands.recall.needles import Statement, check_count
from edgemllm.commands.recall.prose import OWNERS

THINGS = ("box", "door", "locker", "room", "safe", "ticket")

Draw = Callable[[np.random.Generator, int], list[str]]


@dataclass(frozen=True)
class Form:
    """One way to state a fact and to ask for it; {s} is what it is about."""

    words: str
    """What the stream says; {a} is the answer."""
    question: str
    beginning: str
    """What the answer begins with."""
    subjects: tuple[str, ...]
    answers: Draw


def _of(*words: str) -> Draw:
    return lambda rng, count: [str(word) for word in rng.permutation(words)[:count]]


def _numbers(rng: np.random.Generator, count: int) -> list[str]:
    return [f"{number:05d}" for number in rng.choice(100_000, count, replace=False)]


def _dates(rng: np.random.Generator, count: int) -> list[str]:
    return [f"{month} {rng.integers(1, 29)}" for month in rng.permutation(MONTHS)[:count]]


MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

FORMS: dict[str, Form] = {
    "date": Form(
        "The {s} is on {a}. Remember it. {a} is the day of the {s}.", "When is the {s}?", "The {s} is on",
        (
            *("secret meeting", "royal wedding", "horse race", "flower show", "final exam", "chess match"),
            *("boat trip", "piano concert", "school play", "book fair", "town election", "charity ball"),
        ),
        _dates,
    ),
    "place": Form(
        "The {s} is hidden in {a}. Remember it. The {s} lies in {a}.", "Where is the {s} hidden?", "The {s} is hidden in",
        (
            *("treasure", "silver key", "golden ring", "secret map", "lost diary", "red lantern"),
            *("blue diamond", "stolen letter", "pearl necklace", "magic sword", "old violin", "copper crown"),
        ),
        _of(
            *("the clock tower", "the old barn", "the kitchen drawer", "the wine cellar", "the blue vase", "the grand piano"),
            *("the garden shed", "the church bell", "the hollow tree", "the stone well", "the fireplace", "the coal mine"),
        ),
    ),
    "number": Form(
        "The special {s} number is {a}. Remember it. {a} is the special {s} number.",
        "What is the special {s} number mentioned in the text?", "The special {s} number is",
        (
            *("magic", "ticket", "locker", "telephone", "engine", "house"),
            *("account", "prison", "train", "ship", "hospital", "library"),
        ),
        _numbers,
    ),
    "name": Form(
        "The name of the {s} is {a}. Remember it. {a} is the {s}.", "What is the name of the {s}?", "The name of the {s} is",
        (
            *("lighthouse keeper", "head gardener", "ship's captain", "bank manager", "school teacher", "village doctor"),
            *("chief detective", "opera singer", "train driver", "royal cook", "clock maker", "circus owner"),
        ),
        _of(
            *("Margaret Holloway", "Edwin Carter", "Louisa Pratt", "Samuel Whitlock", "Hannah Doyle", "Victor Lang"),
            *("Agnes Thornton", "Oliver Finch", "Clara Benson", "Hugo Marsh", "Ruth Calloway", "Peter Sinclair"),
        ),
    ),
    "city": Form(
        "The best thing to do in {a} is to eat {s}. The {s} city is {a}.", "What is the {s} city?", "The {s} city is",
        (
            *("sandwich", "soup", "cheese", "coffee", "pancake", "salad"),
            *("noodle", "waffle", "pizza", "chocolate", "curry", "bread"),
        ),
        _of(
            *("Lisbon", "Vienna", "Cairo", "Dublin", "Oslo", "Athens", "Boston", "Kyoto", "Madrid", "Prague", "Geneva"),
            "Havana",
        ),
    ),
    "passkey": Form(
        "The pass key of the {s} is {a}. Remember it. {a} is the pass key of the {s}.", "What is the pass key of the {s}?",
        "The pass key of the {s} is",
        (
            *("vault", "gate", "cellar", "tower", "library", "stable"),
            *("kitchen", "chapel", "garage", "attic", "cabin", "museum"),
        ),
        _numbers,
    ),
}  # fmt: skip


def statements(names: Sequence[str], count: int, rng: np.random.Generator) -> list[Statement]:
    """Return `count` facts about different things: of the named forms in turn, or codes (text).

    Raises UsageError where there are not as many.
    """
    if tuple(names) == ("text",):
        return _codes(count, rng)
    each = -(-count // len(names))
    order = [str(name) for name in rng.permutation(names)]
    made = {name: _state(name, each, rng) for name in order}
    return [made[order[number % len(order)]][number // len(order)] for number in range(count)]


def _state(name: str, count: int, rng: np.random.Generator) -> list[Statement]:
    form = FORMS[name]
    check_count(count, len(form.subjects), f"needles of the form {name}")
    return [
        Statement(
            " " + form.words.format(s=subject, a=answer), form.question.format(s=subject), answer,
            form.beginning.format(s=subject), name,
        )
        for subject, answer in zip(rng.permutation(form.subjects), form.answers(rng, count), strict=False)
    ]  # fmt: skip


def _codes(count: int, rng: np.random.Generator) -> list[Statement]:
    subjects = [f" The code of the {owner}'s {thing} is" for owner in OWNERS for thing in THINGS]
    check_count(count, len(subjects), "codes")
    chosen = [(str(subject), str(rng.integers(10))) for subject in rng.permutation(subjects)[:count]]
    return [Statement(f"{subject} {code}.", subject, code) for subject, code in chosen]


def begins_with(answer: str, expected: str) -> bool:
    """Return whether an answer's first words are those expected, whatever the case, articles and punctuation."""
    said, wanted = _words(answer), _words(expected)
    return said[: len(wanted)] == wanted


def _words(text: str) -> list[str]:
    plain = re.sub(r"(?<=\d),(?=\d)", "", text.lower())  # 71,432
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", plain)  # March 14th
    found = re.findall(r"\w+", plain)
    return found[1:] if found[:1] in (["the"], ["a"], ["an"]) else found
