"""What a client learns of a failure: a status, and an error in OpenAI's form."""

from __future__ import annotations

from typing import Any

from edgemllm.errors import DoesNotFitError, EdgeError, MediaError, MissingError, OutOfMemoryError, UsageError

GONE = 499
"""What nginx calls a request whose client did not wait."""
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error"}
STATUS: tuple[tuple[type[EdgeError], int], ...] = (
    (UsageError, 400), (MediaError, 400), (MissingError, 404), (DoesNotFitError, 409), (OutOfMemoryError, 507),
)  # fmt: skip


class Refusal(EdgeError):
    """A request that is not granted. `param` names the field that is the reason."""

    def __init__(self, status: int, message: str, hint: str = "", code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, hint)
        self.status, self.code, self.param = status, code, param


def status_of(error: BaseException) -> int:
    """Return the status with which an error is answered."""
    if isinstance(error, Refusal):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def told(error: BaseException) -> dict[str, Any]:
    """Return an error in OpenAI's form; of one that nobody expected only its kind, which tells a stranger nothing."""
    status = status_of(error)
    if isinstance(error, EdgeError):
        message = f"{error.message} (try: {error.hint})" if error.hint else error.message
    else:
        message = f"unexpected {type(error).__name__}; the server's log says more"
    code, param = (error.code, error.param) if isinstance(error, Refusal) else (None, None)
    return form(status, message, code, param)


def form(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the object that OpenAI's clients read."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
