"""What `/v1/chat/completions` takes: the part of OpenAI's request that this server grants, and no more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgemllm.commands.options import LARGEST_SEED

HARMLESS: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "n": (1,),
    "response_format": ({"type": "text"},), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},), "audio": (),
    "frequency_penalty": (0,), "presence_penalty": (0,), "modalities": (["text"],), "prediction": (), "web_search_options": (),
}  # fmt: skip
"""Fields that would change the answer and are not served, with the values that ask for nothing."""
OFFERED = ("tools", "functions")
"""What a model may call, and need not: this one never does."""


class Sampled(BaseModel):
    """How an answer is made; what is left out is as the command line says."""

    max_tokens: int | None = Field(default=None, ge=1, le=1 << 17, description="Maximum length of the answer in tokens.")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 17, description="The same under its newer name.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 always picks the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    stop: str | list[str] | None = Field(default=None, description="The answer ends before the first of these texts.")

    @property
    def stops(self) -> list[str]:
        """Return the texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class Archiving(BaseModel):
    """Whether what is seen is kept on disk, and looked at again."""

    archive: bool | None = Field(
        default=None,
        description="Keep what is seen and read on disk, and look again at what a question leads to. Default: where the "
        "server has --archive.",
    )


class Link(BaseModel):
    """Where a picture or video is."""

    url: str = Field(description="data:, http(s):// or, below --media-path, file://")


class VideoLink(BaseModel):
    """Where a video is, and which of its frames are looked at."""

    url: str | None = Field(default=None, description="data:, http(s):// or, below --media-path, file://")
    data: str | None = Field(default=None, description="The file itself, in base64.")
    fps: float | None = Field(default=None, gt=0, le=1000)
    max_frames: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _one(self) -> VideoLink:
        if (self.url is None) == (self.data is None):
            raise ValueError("either url or data expected")
        return self


class TextPart(BaseModel):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: Link | str

    @property
    def link(self) -> str:
        """Return where it is."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class VideoPart(BaseModel):
    """A video, as vLLM and mlx-vlm write it."""

    type: Literal["video_url"]
    video_url: VideoLink | str

    @property
    def video(self) -> VideoLink:
        """Return where it is and what is looked at."""
        return VideoLink(url=self.video_url) if isinstance(self.video_url, str) else self.video_url


class InputVideoPart(BaseModel):
    """A video, as llama-server writes it."""

    type: Literal["input_video"]
    input_video: VideoLink

    @property
    def video(self) -> VideoLink:
        """Return where it is and what is looked at."""
        return self.input_video


Part = Annotated[TextPart | ImagePart | VideoPart | InputVideoPart, Field(discriminator="type")]


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | VideoPart | InputVideoPart]:
        """Return the content as parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content or [])

    @property
    def text(self) -> str:
        """Return its words alone."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    """What a stream brings besides the answer."""

    include_usage: bool = False


class ChatRequest(Sampled, Archiving):
    """A conversation that ends with the user's question."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1, max_length=4096)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _served(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS and value is not None and value not in HARMLESS[name]:
                raise ValueError(f"{name} is not served here; omit it")
        return self

    @property
    def ignored(self) -> list[str]:
        """Return the fields that offer something which is never used."""
        return [name for name in OFFERED if (self.model_extra or {}).get(name)]
