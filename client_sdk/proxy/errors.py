"""What the proxy says when it has no verified answer: OpenAI's error shape, with the check by its name.

`{"type": "error", "error": {"message", "type", "param", "code", …}}`: the outer `type` is what Anthropic's clients look
for and OpenAI's skip. Nothing of a request or an answer is ever part of it.
"""

from __future__ import annotations

import json
from typing import Any

from attestation.errors import AttestationError, PolicyError, UnavailableError
from client_sdk.proxy.http import Answer, Headers

JSON = (b"content-type", b"application/json")
#: OpenAI's clients obey it: an enclave that was refused is not asked again and again.
NO_RETRY = (b"x-should-retry", b"false")


class NoAnswerError(Exception):
    """There is no answer to pass on. `sent` says whether any byte of the request may have reached an enclave."""

    def __init__(self, cause: AttestationError | Exception, origin: str, *, sent: bool) -> None:
        super().__init__(f"{type(cause).__name__} from {origin}")
        self.cause, self.origin, self.sent = cause, origin, sent

    @property
    def refused(self) -> bool:
        """Something was found to be wrong, and not merely out of reach."""
        return isinstance(self.cause, AttestationError) and not isinstance(self.cause, UnavailableError)

    @property
    def code(self) -> str:
        """The check that failed; failures of the network on the way to a verified enclave have one name."""
        return str(self.cause.check) if isinstance(self.cause, AttestationError) else "enclave_unreachable"

    @property
    def words(self) -> str:
        if isinstance(self.cause, AttestationError):
            return str(self.cause)
        how = f"{type(self.cause).__name__}: {self.cause}" if str(self.cause) else type(self.cause).__name__
        return f"no answer from {self.origin} ({how})"

    def to_dict(self) -> dict[str, Any]:
        """The inner object of an error."""
        kind = "attestation_error" if isinstance(self.cause, AttestationError) else "api_connection_error"
        error: dict[str, Any] = {"message": self.words, "type": kind, "param": None, "code": self.code}
        error["enclave"] = self.origin
        if isinstance(self.cause, AttestationError):
            error |= {"detail": self.cause.detail, "advice": self.cause.advice}
        if isinstance(self.cause, PolicyError):
            error["violations"] = [
                {"check": str(v.check), "expected": v.expected, "found": v.found}
                for v in self.cause.violations
            ]
        return error

    def to_answer(self) -> Answer:
        """502 for what was refused, 503 for what could not be reached."""
        headers = [
            JSON,
            (b"x-attested", b"refused" if self.refused else b"unavailable"),
            (b"x-attested-check", self.code.encode()),
            (b"x-attested-enclave", self.origin.encode()),
        ]
        if self.refused:
            headers.append(NO_RETRY)
        return Answer(status=502 if self.refused else 503, headers=headers, body=_dump(self.to_dict()))

    def to_event(self) -> bytes:
        """The same for a stream that has begun; clients of OpenAI and of Anthropic raise when they read it."""
        return b"event: error\ndata: " + _dump(self.to_dict()) + b"\n\n"


def api_error(status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> Answer:
    """The proxy's own word, before any enclave was asked."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    every: Headers = [JSON, NO_RETRY, (b"x-attested", b"refused"), *headers]
    return Answer(status=status, headers=every, body=_dump(error))


def _dump(error: dict[str, Any]) -> bytes:
    return json.dumps({"type": "error", "error": error}, separators=(",", ":")).encode()
