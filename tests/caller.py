"""A client that verifies: evidence against the gateway's policy, then the receipt of every answer, over raw bytes."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from attestation._b64 import b64url_encode
from attestation.evidence import parse_evidence
from attestation.policy import parse_policy
from attestation.receipt import (
    COMMENT,
    Outcome,
    Receipt,
    Request,
    RunningDigest,
    check_receipt,
    verify_receipt,
)
from attestation.verdict import Verdict
from attestation.verify import verify


def untrusting() -> ssl.SSLContext:
    """TLS as before verification: it encrypts, and trusts nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Answer:
    """What came back, with its verified receipt; `body` is without the receipt's own comment."""

    status: int
    headers: httpx.Headers
    body: bytes
    receipt: Receipt
    token: str  # the receipt as it came

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event, parsed; `[DONE]` as text."""
        data = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]
        return [json.loads(part) if part != b"[DONE]" else "[DONE]" for part in data]

    @property
    def outcome(self) -> Outcome:
        return self.receipt.outcome

    @property
    def error(self) -> Any:
        """The error's code, of a plain answer."""
        return self.json["error"]["code"]


class Caller:
    """Verifies once, then calls. Every answer without a right receipt is an exception."""

    def __init__(self, origin: str, policy: str) -> None:
        self.http = httpx.Client(base_url=origin, verify=untrusting(), timeout=60, trust_env=False)
        try:
            self.verdict = self.verify(policy)
        except BaseException:
            self.http.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def verify(self, policy: str) -> Verdict:
        nonce = secrets.token_bytes(32)
        answer = self.http.get("/.well-known/attestation", params={"nonce": b64url_encode(nonce)})
        answer.raise_for_status()
        return verify(
            parse_evidence(answer.content), parse_policy(policy), nonce=nonce, now=datetime.now(UTC)
        )

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, data, headers)

    def chat(self, text: str, **more: Any) -> Answer:
        message = {"role": "user", "content": text}
        model = self.verdict.statement.model.names[0]
        return self.post("/v1/chat/completions", {"model": model, "messages": [message], **more})

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        nonce = secrets.token_bytes(32)
        sent = {"Attested-Nonce": b64url_encode(nonce), **(headers or {})}
        response = self.http.request(method, path, content=body, headers=sent)
        assert response.headers["attested-nonce"] == b64url_encode(nonce)
        return self.check(response, nonce, body)

    def watch(self, path: str, body: Any, on_first: Callable[[], object]) -> Answer:
        """A streamed answer; `on_first` is called when its first bytes are here."""
        nonce, data, pieces = secrets.token_bytes(32), json.dumps(body).encode(), []
        headers = {"Attested-Nonce": b64url_encode(nonce)}
        with self.http.stream("POST", path, content=data, headers=headers) as response:
            for piece in response.iter_raw():
                pieces.append(piece)
                if len(pieces) == 1:
                    on_first()
        return self.check(response, nonce, data, b"".join(pieces))

    def stream(self, path: str, body: Any) -> Generator[bytes, None, None]:
        """The body's pieces as they arrive, unverified."""
        with self.http.stream("POST", path, json=body) as response:
            yield from response.iter_raw()

    def check(
        self, response: httpx.Response, nonce: bytes, body: bytes, content: bytes | None = None
    ) -> Answer:
        """The answer, if its receipt is about exactly this exchange. An error's may cover a prefix of the request."""
        data, token = take_receipt(response.headers, response.content if content is None else content)
        receipt = verify_receipt(token, self.verdict.statement.keys.receipt_ed25519)
        read = body[: receipt.request.length] if receipt.outcome is Outcome.ERROR else body
        digest = RunningDigest(nonce, read)
        request = response.request
        check_receipt(
            receipt,
            statement=self.verdict.statement_digest,
            model_digest=self.verdict.statement.model.digest,
            request=Request(
                method=request.method,
                path=request.url.raw_path.decode(),
                digest=digest.digest(),
                length=digest.length,
            ),
            status=response.status_code,
            response=RunningDigest(nonce, data),
            now=datetime.now(UTC),
        )
        return Answer(response.status_code, response.headers, data, receipt, token)


def take_receipt(headers: httpx.Headers, content: bytes) -> tuple[bytes, str]:
    """The body without the receipt, and the receipt: from its header, or from the comment at the very end; checkpoints are left out."""
    if "attested-receipt" in headers:
        return content, headers["attested-receipt"]
    assert content.endswith(b"\n\n")
    blocks = [block + b"\n\n" for block in content[:-2].split(b"\n\n")]
    assert blocks[-1].startswith(COMMENT), f"no receipt: {content!r}"
    events = b"".join(block for block in blocks if not block.startswith(COMMENT))
    return events, blocks[-1][len(COMMENT) :].decode().rstrip("\n")
