"""Counts for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"edgemllm_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"edgemllm_{name}", text, registry=self.registry)

        self.requests = counter("requests", "Requests by path, method and status.", ("path", "method", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Tokens taken in, of text, pictures and video.")
        self.generated_tokens = counter("generated_tokens", "Tokens answered.")
        self.evicted_tokens = counter("evicted_tokens", "Tokens dropped from caches, mean over layers.")
        self.abandoned = counter("abandoned_answers", "Answers that ended because the client went away.")
        self.answers_running = gauge("answers_running", "Answers that take turns now.")
        self.answers_waiting = gauge("answers_waiting", "Requests that wait for one to end.")
        self.kv_bytes = gauge("kv_reserved_bytes", "Bytes planned for the caches that are open.")
        self.kv_room = gauge("kv_room_bytes", "Bytes that weights, vision and margin leave for caches and scratch.")
        self.first_token = Histogram(
            "edgemllm_time_to_first_token_seconds",
            "From a request's turn to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        found: bytes = generate_latest(self.registry)
        return found
