"""Channels, and what an answer without a seal means, without sockets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError, VerificationError
from attestation.sealed import open_request, parse_envelope, parse_message
from attestation.sealed_answer import ANSWER_TYPE
from client_sdk.sealing import Channel, is_sealed, not_sealed, seal
from tests.client_sdk.pretend import NOW, PretendEnclave


def error(code: object) -> bytes:
    return json.dumps({"error": {"message": "m", "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "check"),
    [
        (422, error("sealed_key"), VerificationError, Check.SEALED_KEY),
        (409, error("sealed_replay"), VerificationError, Check.SEALED_REPLAY),
        (400, error("sealed_suite"), VerificationError, Check.SEALED_SUITE),
        (400, error("sealed_open"), VerificationError, Check.SEALED_OPEN),
        (400, error("sealed_format"), VerificationError, Check.SEALED_FORMAT),
        (503, error("sealed_full"), UnavailableError, Check.SEALED_MISSING),
        (502, b"<html>Bad Gateway</html>", UnavailableError, Check.SEALED_MISSING),
        (429, b"", UnavailableError, Check.SEALED_MISSING),
        (200, b'{"choices": []}', VerificationError, Check.SEALED_MISSING),
        (404, error("not_found"), VerificationError, Check.SEALED_MISSING),
        (413, error("request_too_large"), VerificationError, Check.SEALED_MISSING),
    ],
)
def test_an_answer_without_a_seal(
    status: int, body: bytes, kind: type[AttestationError], check: Check
) -> None:
    """It is an error, whatever it says; what is in its way may pass, and what the gateway says has its name."""
    found = not_sealed(status, body)
    assert type(found) is kind
    assert found.check is check


@given(st.binary(max_size=200), st.integers(100, 599))
def test_any_bytes_without_a_seal(body: bytes, status: int) -> None:
    """Nothing of a stranger's text but a short word gets into the error."""
    assert not_sealed(status, body).check is Check.SEALED_MISSING
    assert "x y" not in not_sealed(status, error("x y")).detail


def test_what_counts_as_sealed() -> None:
    """Status and media type of the outer answer, exactly."""
    sealed = (b"Content-Type", ANSWER_TYPE.encode())
    assert is_sealed(200, [(b"date", b"now"), sealed])
    assert not is_sealed(201, [sealed])
    assert not is_sealed(200, [(b"content-type", b"text/event-stream")])
    assert not is_sealed(200, [sealed, sealed])
    assert not is_sealed(200, [])


def test_every_channel_protects() -> None:
    """There is no way to ask for neither, and who tries is told what there is."""
    assert all(channel.seals or channel.pins for channel in Channel)
    with pytest.raises(ValueError, match=r"no channel 'plain': sealed\+pinned, sealed, pinned"):
        Channel("plain")


def test_headers_go_inside_without_those_of_the_connection() -> None:
    """The API key among them; what is about the connection stays behind, and what is for us to say is ours."""
    enclave = PretendEnclave()
    exchange = enclave.exchange()
    headers = [(b"Host", b"h"), (b"Authorization", b"Bearer k"), (b"Content-Length", b"3"), (b"X", b"\xe9")]
    headers += [(b"Accept-Encoding", b"gzip"), (b"Attested-Nonce", b"mine"), (b"attested-ticket", b"mine")]
    data, _ = seal(exchange, headers, NOW)
    envelope = parse_envelope(data)
    assert envelope.statement == exchange.verdict.statement_digest
    message = parse_message(open_request(envelope, enclave.sealing_keys).content)
    nonce = ("attested-nonce", b64url_encode(exchange.nonce))
    ours = (("accept-encoding", "identity"), nonce, ("attested-ticket", "new"))
    assert message.head.headers == (("authorization", "Bearer k"), ("x", "é"), *ours)
    assert (message.head.target, message.body) == (exchange.path, exchange.body)
