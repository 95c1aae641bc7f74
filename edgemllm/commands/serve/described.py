"""What answers and sessions say of themselves, for the description of the API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Spans = list[tuple[float, float]]


class Places(BaseModel):
    """Parts of what was seen and read, first and last of each."""

    video: Spans = Field(description="Seconds of video.")
    lines: Spans = Field(description="Lines of text.")


class Recall(BaseModel):
    """What was looked at again for the newest question; left out where no archive is kept."""

    model_config = ConfigDict(extra="allow")

    recalled: Places | None = None
    recall_tokens: int | None = Field(default=None, description="Tokens that it took.")
    recall_ms: float | None = Field(default=None, description="Milliseconds that it took, turns of others included.")


class Held(Recall):
    """What a cache holds, has lost, and looked at again."""

    kv: dict[str, Any] | None = Field(default=None, description="The KV object of docs/cli.md.")
    remembered: Places | None = Field(default=None, description="Of which the cache still holds something.")
    speed: dict[str, Any] | None = None


class Measured(Held):
    """What stands beside an answer."""

    ttft_ms: float = Field(description="From the request's turn to the first piece.")
    ignored: list[str] = Field(description="Fields of the request that offered something which is never used, such as tools.")


class Completion(BaseModel):
    """An answer, as OpenAI's clients read it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    edgemllm: Measured


class Told(Recall):
    """A question to a session, and its answer."""

    question: str
    answer: str
    video_s: float = Field(description="When in the stream it was asked.")
    at: float = Field(description="When it was asked, in seconds since 1970.")
    stopped: bool = Field(default=False, description="The client went away before the end.")


class Archived(BaseModel):
    """The archive of a session."""

    bytes: int
    video: Spans = Field(description="Seconds of video that it holds; gaps below 1% of the whole are closed.")
    growing: bool = Field(description="False: archiving has ended, and the session continues without.")
    notice: str = Field(description="What was said of it last.")


class Described(Held):
    """How a session stands. Asleep since the server began, it knows no more than the first fields."""

    id: str
    object: str
    source: str | None
    policy: str
    budget_tokens: int | None
    status: str = Field(description="watching, open, asleep, lost or failed.")
    reason: str | None = None
    video_s: float | None = None
    frames: int | None = None
    dropped: int | None = None
    lines: int | None = None
    archive: Archived | None = Field(default=None, description="null: none is kept.")
    answers: list[Told] | None = Field(default=None, description="The latest, where one session is described.")
    bytes: int | None = Field(default=None, description="Of the file, after save.")
