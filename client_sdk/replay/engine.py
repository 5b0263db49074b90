"""What runs a request again: another attested enclave, or, where somebody says so, an engine that nobody attests."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

import httpx

from attestation.binding import Statement
from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError
from attestation.policy import Policy
from attestation.tokens import REPLAY_HEADER
from attestation.verdict import Verdict
from client_sdk.replay.answer import MAX_ANSWER_BYTES
from client_sdk.replay.comparing import check_same
from client_sdk.sealing import Channel
from client_sdk.transport import attested_transport

TIMEOUT = httpx.Timeout(30, read=600)  # seconds; a long answer takes as long again
_UNIX = "http+unix://"


class AttestedEngine(AbstractContextManager["AttestedEngine"]):
    """Another enclave, verified by the same policy. It gets no prompt unless it serves the same model in the same way."""

    def __init__(
        self, url: str, recorded: Statement, policy: Policy, *, channel: Channel, api_key: str | None = None
    ) -> None:
        self._recorded = recorded
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        transport = attested_transport(policy, channel=channel)
        self._client = httpx.Client(transport=transport, base_url=url, headers=headers, timeout=TIMEOUT)
        self.verdict: Verdict | None = None

    def __enter__(self) -> Self:
        """Verify it, before anything else is sent."""
        with ExitStack() as stack:
            stack.callback(self._client.close)
            self._send("GET", "/v1/models")
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, path: str, body: bytes, *, ids: bool) -> bytes:
        return self._send("POST", path, body, {REPLAY_HEADER: "1"} if ids else {})

    def _send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> bytes:
        head = {"Content-Type": "application/json", **(headers or {})}
        answer = _answered(lambda: self._client.request(method, path, content=body, headers=head))
        self.verdict = answer.extensions["attestation"].verdict
        check_same(self._recorded, self.verdict.statement)  # of each answer: it may have been started anew
        return _body(answer)


class UnattestedEngine(AbstractContextManager["UnattestedEngine"]):
    """vLLM as it is, at http://host:port or http+unix:///path/to.sock. Of what it serves, only its version is asked."""

    verdict = None

    def __init__(self, url: str, recorded: Statement, *, api_key: str | None = None) -> None:
        self._recorded = recorded
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        socket = url.removeprefix(_UNIX) if url.startswith(_UNIX) else None
        transport = httpx.HTTPTransport(uds=socket)
        base = url if socket is None else "http://engine"
        self._client = httpx.Client(transport=transport, base_url=base, headers=headers, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._client.close)
            self._check_version(_body(_answered(lambda: self._client.get("/version"))))
            stack.pop_all()
        return self

    def _check_version(self, answer: bytes) -> None:
        try:
            version: Any = json.loads(answer)["version"]
        except (ValueError, KeyError, TypeError):
            raise MalformedError(Check.REPLAY_ENGINE, "the engine does not say its version") from None
        if version != self._recorded.engine.version:
            raise UnavailableError(
                Check.REPLAY_ENGINE,
                f"the engine's version was {self._recorded.engine.version}, there it is {version}",
            )

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, path: str, body: bytes, *, ids: bool) -> bytes:
        content = json.dumps({**json.loads(body), "return_token_ids": True}).encode() if ids else body
        head = {"Content-Type": "application/json"}
        return _body(_answered(lambda: self._client.post(path, content=content, headers=head)))


def _answered(send: Callable[[], httpx.Response]) -> httpx.Response:
    try:
        return send()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise UnavailableError(Check.REPLAY_ANSWER, f"no answer: {type(exc).__name__}: {exc}") from exc


def _body(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise UnavailableError(
            Check.REPLAY_ANSWER, f"the engine answered {answer.status_code}: {answer.text[:500]}"
        )
    if len(answer.content) > MAX_ANSWER_BYTES:
        raise MalformedError(Check.REPLAY_ANSWER, f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return answer.content
