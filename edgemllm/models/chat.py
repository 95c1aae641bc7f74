"""How a conversation is written and read: the chat template, how the next token is chosen, and text from tokens.

The template is applied one turn at a time, so that a conversation of any length needs no history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemllm.errors import MissingError, UsageError

QUESTION, ANSWER, DOCUMENT = "\ufdd0question\ufdd1", "\ufdd0answer\ufdd1", "\ufdd0document\ufdd1"
"""Stand-ins that no text contains (Unicode noncharacters)."""

TEXT = "text"
"""The kind of a document: it stands in the user's turn as media do, and ends with a line of its own."""


class ChatFormat:
    """Splits the template's output into what goes before, between and after media and question."""

    def __init__(
        self, tokenizer: Any, tokens: dict[str, str | None], media_wrappers: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        """The placeholder token of each kind of media, `image` and `video`."""
        self.media_wrappers = {TEXT: ("", "\n"), **(media_wrappers or {})}
        """Text before and after media of a kind, in place of the placeholder."""
        if not getattr(tokenizer, "chat_template", None):
            raise MissingError(
                "this model has no chat template, so it cannot chat",
                "use an instruction-tuned checkpoint (one with chat_template in its tokenizer files)",
            )

    def turn(self, media: Sequence[str], first: bool, system: str | None = None) -> list[str]:
        """Return the texts around media and documents of a user's turn, then before and after the question: len(media) + 2.

        The last starts after the question and ends where the answer begins. Later turns begin by closing the answer
        before them.
        """
        whole, after = self._written(media, first, system)
        pieces, before = [], whole
        for kind in media:
            mark = DOCUMENT if kind == TEXT else self.tokens[kind]
            assert mark is not None
            piece, found, rest = before.partition(mark)
            if mark not in whole:
                raise MissingError(f"the chat template of this model has no place for a {kind}", "another checkpoint")
            if not found:  # a template that puts media before text: this kind has come already
                piece, rest = "", before
            opening, closing = self.media_wrappers.get(kind, ("", ""))
            pieces.append(self._bare(piece) + opening)
            before = closing + rest
        return [*pieces, self._bare(before), after]

    def _bare(self, text: str) -> str:
        """Return the text without placeholders of what comes in another order than in the template."""
        for mark in (DOCUMENT, *filter(None, self.tokens.values())):
            text = text.replace(mark, "")
        return text

    def _written(self, media: Sequence[str], first: bool, system: str | None) -> tuple[str, str]:
        """Return what the template writes before and after the question, with placeholders."""
        strings = [DOCUMENT] * len(media) + [QUESTION]
        parts = [{"type": TEXT, TEXT: DOCUMENT} if kind == TEXT else {"type": kind} for kind in media]
        listed = [*parts, {"type": TEXT, TEXT: QUESTION}]
        # Templates of text models take strings, those of some others only lists.
        contents: list[Any] = [listed] if set(media) - {TEXT} else ["".join(strings), listed]
        try:
            for content in contents:
                text = self._rendered(content, first, system)
                if text.count(QUESTION) == 1:
                    break
            before, after = text.split(QUESTION)
        except Exception as error:  # a template is a program: it may raise anything, also on purpose
            source = Path(self.tokenizer.name_or_path)
            if not source.is_file():  # a GGUF has it inside
                own = source / "chat_template.jinja"
                source = own if own.is_file() else source / "tokenizer_config.json"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MissingError(
                f"the chat template of {source} cannot write this turn: {reason}",
                "fetch it again" + ("; or omit --system" if system else ""),
            ) from error
        return before, after

    def _rendered(self, content: Any, first: bool, system: str | None) -> str:
        def written(text: str) -> Any:
            return text if isinstance(content, str) else [{"type": TEXT, TEXT: text}]

        messages = [{"role": "user", "content": content}]
        if first and system:
            messages.insert(0, {"role": "system", "content": system})
        if not first:
            earlier = [{"role": "user", "content": written("?")}, {"role": "assistant", "content": written(ANSWER)}]
            messages = [*earlier, *messages]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text if first else text.split(ANSWER, 1)[1]


COLDEST = 1e-6
"""A temperature below always picks the likeliest: divided by less, logits overflow."""


@dataclass(frozen=True)
class Sampling:
    """What is asked of an answer's tokens."""

    max_tokens: int = 512
    temperature: float = 0.0
    """Sampling temperature; 0 always picks the likeliest token."""
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 <= self.top_p <= 1):
            raise UsageError(
                f"--temperature {self.temperature:g} with --top-p {self.top_p:g} chooses nothing",
                "a temperature from 0 upwards and a --top-p from 0 to 1",
            )


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the next token, drawn from logits (1, V)."""
    if sampling.temperature < COLDEST:
        return int(logits.argmax(-1))
    chances = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ranked, order = chances.sort(dim=-1, descending=True)
        # A token stays if the ones before it have not yet filled top_p; the likeliest always stays, with 0 too.
        filled = ranked.cumsum(-1) - ranked >= sampling.top_p
        filled[..., 0] = False
        ranked[filled] = 0
        chances = torch.zeros_like(chances).scatter(-1, order, ranked)
    return int(torch.multinomial(chances, 1, generator=generator))


class Detokenizer:
    """Turns tokens into text as they come, holding back half characters; remembers a handful of tokens only."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.emitted = 0
        """How many of `ids` are already part of the text given out."""

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        """Return what became readable with this token."""
        self.ids.append(token)
        known, text = self._text(self.ids[: self.emitted]), self._text(self.ids)
        if text.endswith("\ufffd") and len(self.ids) - self.emitted < 8:
            return ""
        # The last tokens stay as context: some tokenizers write a space only between two of them.
        self.ids, self.emitted = self.ids[self.emitted :], len(self.ids) - self.emitted
        return text[len(known) :]

    def rest(self) -> str:
        """Return what was held back, at the end."""
        return self._text(self.ids)[len(self._text(self.ids[: self.emitted])) :]
