"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`. Below /v1/messages as Anthropic's
do: `"type": "error"` beside them, and the error's own type one of Anthropic's.

Messages are written here and never quote what a client or the engine sent.
"""

from __future__ import annotations

import json

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is not the one that was asked for."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)
        if allow is not None:
            self.headers["allow"] = allow
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    @property
    def type(self) -> str:
        if self.code.startswith("engine_"):
            return "engine_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def to_json(self, *, anthropic: bool = False) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if not anthropic:
            return _compact({"error": error})
        other = "invalid_request_error" if self.status < 500 else "api_error"
        return _compact({"type": "error", "error": {**error, "type": _ANTHROPIC.get(self.status, other)}})

    def to_event(self, *, anthropic: bool = False) -> bytes:
        """The same as one server-sent event, for a stream that has begun."""
        name = b"event: error\n" if anthropic else b""
        return name + b"data: " + self.to_json(anthropic=anthropic) + b"\n\n"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def engine_unavailable(reason: str) -> ApiError:
    return ApiError(
        503, "engine_unavailable", f"The engine cannot answer now: {reason}. Try again soon.", retry_after=5
    )


def engine_aborted() -> ApiError:
    """The code that docs/protocol.md promises for a stream that broke; also for plain answers."""
    return ApiError(502, "engine_aborted", "The engine stopped before its answer was complete.")


def engine_timeout() -> ApiError:
    return ApiError(504, "engine_timeout", "The engine took longer than this gateway waits for an answer.")


def identity_expired() -> ApiError:
    """Nothing is signed any more."""
    return ApiError(503, "identity_expired", "This gateway's statement has ended, and it has no other.")


def statement_ended(status: int) -> ApiError:
    """421: nothing was done. 503: the answer could not be ended in time to be signed."""
    return ApiError(
        status, "statement_ended", "The statement of this connection has ended; verify this enclave again."
    )


def log_unavailable() -> ApiError:
    """The one kind of answer whose receipt is not logged."""
    return ApiError(
        503, "log_unavailable", "The log of receipts takes none now. Try again soon.", retry_after=5
    )


def secrets_missing() -> ApiError:
    return ApiError(
        503,
        "secrets_missing",
        "This gateway waits for its owner, who has not given it all that it needs.",
        retry_after=5,
    )


def stopping() -> ApiError:
    return ApiError(503, "stopping", "This gateway is stopping.", retry_after=30)


def internal() -> ApiError:
    return ApiError(500, "internal_error", "The gateway failed; its log names the kind of failure.")


def body_timeout() -> ApiError:
    return ApiError(408, "body_timeout", "The request's body did not arrive in time.")


def invalid_http() -> ApiError:
    return ApiError(400, "invalid_http", "This is not a request of HTTP/1.1, or could be read in two ways.")


def head_too_large(limit: int) -> ApiError:
    return ApiError(431, "head_too_large", f"A request's head may have {limit} bytes.")


def too_large(limit: int) -> ApiError:
    return ApiError(413, "request_too_large", f"A request's body may have {limit} bytes.")
