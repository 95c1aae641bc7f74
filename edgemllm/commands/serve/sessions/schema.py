"""What the session API takes."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from edgemllm import policies
from edgemllm.commands.serve.schema import Archiving, Sampled
from edgemllm.units import parse_time

MOST_TEXT = 4 << 20
"""Characters of one text."""


class Standing(BaseModel):
    """A question that is asked again and again."""

    question: str = Field(min_length=1, max_length=4000)
    every: str = Field(default="30s", description="30s, 5m or 1:30 of the stream.")

    @field_validator("every")
    @classmethod
    def _interval(cls, text: str) -> str:
        if parse_time(text) <= 0:
            raise ValueError("an interval above 0 expected, such as 30s")
        return text


class Wish(Sampled, Archiving):
    """A new session."""

    source: str | None = Field(default=None, description="A name of /v1/sources, or file:// below --media-path.")
    fps: float | None = Field(default=None, gt=0, le=1000)
    live: bool | None = Field(
        default=None, description="Play a recording by the clock; frames the model is too slow for are lost."
    )
    policy: str | None = Field(default=None, description="Which tokens the cache keeps.")
    set: list[str] = Field(default=[], max_length=32, description="The policy's own settings, key=value.")
    kv_budget: str | int | None = Field(default=None, description="2048 tokens per layer, 512MiB or auto.")
    system: str | None = Field(default=None, max_length=20_000)
    ask: list[Standing] = Field(default=[], max_length=8, description="Standing questions.")

    @field_validator("policy")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        if name is not None and name not in policies.names():  # file.py:Class would run it
            raise ValueError(f"a policy of this server expected: {', '.join(policies.names())}")
        return name


class Question(Sampled):
    """A question to a session."""

    question: str = Field(min_length=1, max_length=MOST_TEXT)
    stream: bool = Field(default=True, description="Server-sent events; false: one object.")


class Text(BaseModel):
    """Words to read."""

    text: str = Field(min_length=1, max_length=MOST_TEXT)
