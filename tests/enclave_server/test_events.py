"""A stream is cut only where events end, and is whole only when it says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.receipt import Usage
from enclave_server.engine.answer import TooLongError, UpstreamError
from enclave_server.events import MAX_EVENT_BYTES, Events

STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\\n\\n"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    b"data: [DONE]\n\n"
)


def feed(stream: bytes, cuts: list[int]) -> tuple[Events, list[bytes]]:
    events, at = Events(), 0
    given_out = []
    for cut in [*sorted(cuts), len(stream)]:
        given_out.append(events.feed(stream[at:cut]))
        at = cut
    return events, given_out


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_reads(cuts: list[int]) -> None:
    """However the socket's reads fall, the bytes are the same, each piece ends an event, and the end is seen."""
    events, pieces = feed(STREAM, cuts)
    assert b"".join(pieces) == STREAM
    assert all(not piece or piece.endswith(b"\n\n") for piece in pieces)
    assert events.complete


@given(st.integers(0, len(STREAM) - 1))
def test_every_truncation(cut: int) -> None:
    """A stream cut anywhere, also exactly between two events, is not complete."""
    events, pieces = feed(STREAM[:cut], [])
    assert not events.complete
    assert STREAM.startswith(b"".join(pieces))


@given(st.integers(0, len(STREAM) - 1))
def test_usage(cut: int) -> None:
    """Token counts are found whether or not [DONE] came in the same read."""
    events, _ = feed(STREAM, [cut])
    wanted = Usage(prompt_tokens=3, completion_tokens=2)
    assert events.usage() in ((wanted,) if cut <= STREAM.index(b"data: [DONE]") + 12 else (wanted, None))


def test_usage_null() -> None:
    """`"usage": null`, as some chunks have it, is no count."""
    events, _ = feed(b'data: {"usage":null}\n\ndata: [DONE]\n\n', [])
    assert events.complete
    assert events.usage() is None


@pytest.mark.parametrize("before", [b"", b"data: {}\n\n"])
@pytest.mark.parametrize("error", [b'data: {"error": {"code": 500}}\n\n', b'data: {"object":"error"}\n\n'])
def test_errors(before: bytes, error: bytes) -> None:
    """An error event makes the stream a failed one, even when [DONE] follows."""
    events, _ = feed(before + error + b"data: [DONE]\n\n", [])
    assert events.failed
    assert not events.complete


@given(st.integers(0, 60))
def test_comment_of_ours(cut: int) -> None:
    """The engine cannot write a comment that looks like a receipt."""
    with pytest.raises(UpstreamError):
        feed(b"data: {}\n\n: attested x\n\ndata: [DONE]\n\n", [min(cut, 30)])


def test_endless_event() -> None:
    """An event without an end is not held forever."""
    events = Events()
    assert events.feed(b"x" * MAX_EVENT_BYTES) == b""
    with pytest.raises(TooLongError):
        events.feed(b"x")


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes(reads: list[bytes]) -> None:
    """Any bytes are relayed in order or refused, and never raise anything else."""
    events, out = Events(), b""
    try:
        for read in reads:
            out += events.feed(read)
    except UpstreamError:
        return
    assert b"".join(reads).startswith(out)
    events.usage()


PIECES = st.sampled_from(
    [
        *(piece + b"\n\n" for piece in STREAM.split(b"\n\n")[:-1]),
        b'data: {"error": {}}\n\n',
        b'data: {"object":"error"}\n\n',
        b'data: {"error"',
        b"event: error\ndata: {}\n\n",
        b"event: response.failed\ndata: {}\n\n",
        b"event: message_stop\ndata: {}\n\n",
        b": attested x\n\n",
        b"data: {}\n: attested x\n\n",
        b": attested\n\n",
        b"\n\n",
        b"x",
    ]
)


@given(st.lists(PIECES, max_size=6))
def test_alone_or_together(pieces: list[bytes]) -> None:
    """What comes event by event, as it mostly does, is judged as what comes in one read."""

    def judged(reads: list[bytes]) -> object:
        events = Events()
        try:
            out = b"".join(map(events.feed, reads))
        except UpstreamError:
            return "refused"
        return out, events.failed, events.complete

    assert judged(pieces) == judged([b"".join(pieces)])
