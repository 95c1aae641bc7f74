"""What a speed measurement looks like: a Markdown table, and one flat row a cell for spreadsheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgemllm.commands.tables import markdown
from edgemllm.device.memory import human_bytes
from edgemllm.units import short_count

FIELDS = (
    "policy", "context", "kv_budget_tokens", "quant", "dtype", "chunk", "ttft_ms", "prefill_tps", "decode_tps",
    "decode_ms_median", "decode_ms_p10", "decode_ms_p90", "roofline_share", "kv_tokens", "kv_bytes", "evicted_tokens",
    "rss_peak_bytes", "device_peak_bytes", "decode_ms_samples",
)  # fmt: skip


def flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row; samples are separated by blanks."""
    kv, memory = run["kv"], run["memory"]
    more = {
        **{f"decode_ms_{name}": value for name, value in run["decode_ms"].items()},
        "kv_tokens": kv["tokens"], "kv_bytes": kv["bytes"], "evicted_tokens": kv["evicted_tokens"],
        "rss_peak_bytes": memory["rss_peak_bytes"], "device_peak_bytes": memory["device_peak_bytes"],
        "decode_ms_samples": " ".join(f"{each:g}" for each in run["decode_ms_samples"]),
    }  # fmt: skip
    return {name: more[name] if name in more else run[name] for name in FIELDS}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row a cell; decode time as median and the range of eight in ten samples."""
    head = (
        "policy", "quant", "context", "budget", "first token ms", "prefill tok/s", "decode ms", "p10-p90", "tok/s", "roofline",
        "KV", "peak",
    )  # fmt: skip
    return markdown([head, *(_row(run) for run in runs)], left=2)


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    spread, memory = run["decode_ms"], run["memory"]
    budget = run["kv_budget_tokens"]
    return (
        run["policy"],
        run["quant"],
        short_count(run["context"]),
        "-" if budget is None else short_count(budget),
        f"{run['ttft_ms']:.1f}",
        f"{run['prefill_tps']:.1f}",
        f"{spread['median']:.2f}",
        f"{spread['p10']:.2f}-{spread['p90']:.2f}",
        f"{run['decode_tps']:.2f}",
        f"{run['roofline_share']:.0%}",
        human_bytes(run["kv"]["bytes"]),
        human_bytes(memory["device_peak_bytes"] or memory["rss_peak_bytes"]),
    )
