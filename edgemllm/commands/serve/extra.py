"""The extra `serve`: refused with what to install, before anything is planned."""

from __future__ import annotations

import importlib.util

from edgemllm.errors import UsageError

PACKAGES = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "httpcore")


def check_extra() -> None:
    """Raise UsageError where a package of the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}, which is not installed", "pip install 'edgemllm[serve]'")
