"""What a session counts, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Meter:
    """Running counts of a session, and the seconds they took."""

    frames: int = 0
    images: int = 0
    frame_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    video_s: float = 0.0
    """Seconds of the latest video shown so far."""
    skipped: int = 0
    """Frames of a stream left out because they hardly differed from the one before."""
    lines: int = 0
    """Lines of text read so far, of all documents."""
    text_bytes: int = 0
    text_tokens: int = 0
    dropped: int = 0
    """Frames of a live stream that the model was too slow for."""

    def rates(self) -> dict[str, float]:
        """The `speed` object of the JSON output."""

        def rate(count: int, seconds: float) -> float:
            return round(count / seconds, 2) if seconds else 0.0

        return {
            "prefill_tps": rate(self.prefill_tokens, self.prefill_s),
            "decode_tps": rate(self.decode_tokens, self.decode_s),
            "frames_per_s": rate(self.frames, self.frame_s),
        }
