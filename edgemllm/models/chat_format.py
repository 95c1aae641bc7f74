"""A model's chat template, applied one turn at a time, so that a conversation of any length needs no history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgemllm.errors import MissingError

QUESTION, ANSWER = "\ufdd0question\ufdd1", "\ufdd0answer\ufdd1"
"""Stand-ins that no text contains (Unicode noncharacters)."""


class ChatFormat:
    """Splits the template's output into what goes before, between and after media and question."""

    def __init__(
        self, tokenizer: Any, tokens: dict[str, str | None], around: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        """The placeholder token of each kind of media, `image` and `video`."""
        self.around = around or {}
        """Text before and behind media of a kind, in place of the placeholder."""
        if not getattr(tokenizer, "chat_template", None):
            raise MissingError(
                "this model has no chat template, so it cannot chat",
                "use an instruction-tuned checkpoint (one with chat_template in its tokenizer files)",
            )

    def turn(self, media: Sequence[str], first: bool, system: str | None = None) -> list[str]:
        """The texts around the media of a user's turn, then the text before and after the question: len(media) + 2.

        The last starts behind the question and ends where the answer begins. Later turns begin by closing the answer
        before them.
        """
        content: Any = QUESTION
        if media:
            content = [*({"type": kind} for kind in media), {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        if first and system:
            messages.insert(0, {"role": "system", "content": system})
        if not first:
            earlier = {"role": "assistant", "content": ANSWER if not media else [{"type": "text", "text": ANSWER}]}
            messages = [
                {"role": "user", "content": "?" if not media else [{"type": "text", "text": "?"}]},
                earlier,
                *messages,
            ]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if not first:
            text = text.split(ANSWER, 1)[1]
        before, after = text.split(QUESTION)
        pieces = []
        for kind in media:
            token = self.tokens[kind]
            assert token is not None
            piece, before = before.split(token, 1)
            opening, closing = self.around.get(kind, ("", ""))
            pieces.append(piece + opening)
            before = closing + before
        return [*pieces, before, after]
