"""How many tokens an input will have, about: only for planning, before there is a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemllm.media.text import Text
    from edgemllm.media.video import Video
    from edgemllm.models.spec import Sizes

TURN_TOKENS = 16
"""What a chat template adds to a turn, about."""

TOKEN_BYTES = 4
"""Bytes of a text that a token stands for, about."""


def question_tokens(question: str) -> int:
    """Return the tokens of a question in its turn."""
    return len(question) // 3 + TURN_TOKENS


def input_tokens(
    sizes: Sizes, questions: Sequence[str], videos: Sequence[Video] = (), images: int = 0, texts: Sequence[Text] = ()
) -> int | None:
    """Return the tokens of all that is shown, read and asked; None where the length of a video or a text is not known."""
    total = sum(map(question_tokens, questions)) + sizes.image_tokens * images
    for video in videos:
        if video.expected is None:
            return None
        total += video.expected * sizes.frame_tokens + TURN_TOKENS
    for text in texts:
        if text.size is None:
            return None
        total += text.size // TOKEN_BYTES + TURN_TOKENS
    return total
