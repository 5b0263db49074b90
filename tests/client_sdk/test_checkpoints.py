"""Checkpoints of a stream: what they prove as it is read, and everything that may be done to them on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.receipt import COMMENT, Outcome, Request, Response, RunningDigest, ServedModel
from client_sdk.receipts import Attestation, PlainCheck
from client_sdk.streams import StreamCheck, Verify, _is_usual
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, PretendEnclave, stream_headers

ENCLAVE, STRANGER = PretendEnclave(), PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
OTHER = replace(EXCHANGE, nonce=b"\x0c" * 32)  # the same request once more
STREAM = b"".join(EVENTS)
ONE, TWO, THREE, USAGE, DONE = EVENTS


def checkpoint(number: int, events: bytes, enclave: PretendEnclave = ENCLAVE, **how: Any) -> bytes:
    """A checkpoint after `events`; `how` makes it lie."""
    how = {"outcome": Outcome.CHECKPOINT, "checkpoints": number, **how}
    return enclave.comment(how.pop("exchange", EXCHANGE), events, **how)


FIRST, SECOND, THIRD = (checkpoint(n, b"".join(EVENTS[: n + 1])) for n in (1, 2, 3))
END = ENCLAVE.comment(EXCHANGE, STREAM, checkpoints=3)
PARTS = (ONE, TWO, FIRST, THREE, SECOND, USAGE, THIRD, DONE, END)
WIRE = b"".join(PARTS)
CUT = ENCLAVE.comment(EXCHANGE, ONE + TWO, outcome=Outcome.ABORTED, checkpoints=1)
ERROR = b'data: {"error":{"message":"the engine died","type":"engine_error","code":"engine_aborted"}}\n\n'


def make(verify: Verify = Verify.AS_YOU_READ) -> StreamCheck:
    return StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE), verify)


def read(check: StreamCheck, *reads: bytes) -> bytes:
    out = b"".join(b"".join(check.feed(part, NOW)) for part in reads) + check.finish(NOW)
    check.conclude()
    return out


def refused(*reads: bytes, verify: Verify = Verify.AS_YOU_READ) -> Check:
    with pytest.raises(AttestationError) as caught:
        read(make(verify), *reads)
    return caught.value.check


@pytest.mark.parametrize("verify", Verify)
@given(st.lists(st.integers(0, len(WIRE)), max_size=12))
@settings(max_examples=30, deadline=None)
def test_checkpoints_leave_nothing_in_the_stream(verify: Verify, cuts: list[int]) -> None:
    """However the network cuts it and whenever it is given out, the client gets the engine's bytes and no more."""
    edges = [0, *sorted(cuts), len(WIRE)]
    check = make(verify)
    assert read(check, *(WIRE[a:b] for a, b in itertools.pairwise(edges))) == STREAM
    assert check.receipt is not None
    assert check.receipt.checkpoints == 3
    assert check.given == check.proven == len(STREAM)
    assert check.finish(NOW) == b"", "a client that reads on gets nothing twice"


def test_what_is_proven_as_it_is_read() -> None:
    """Each checkpoint proves everything before it; what came after it is provisional."""
    check = make()
    attestation = Attestation(EXCHANGE.verdict, check)
    seen: list[tuple[bytes, bool]] = []
    for part in (ONE, TWO, FIRST + THREE + SECOND + USAGE, THIRD):
        seen += [(piece, attestation.attested) for piece in check.feed(part, NOW)]
    assert seen == [(ONE, False), (TWO, False), (THREE, True), (USAGE, False)]
    assert attestation.proven == len(ONE + TWO + THREE + USAGE)
    assert attestation.attested
    assert attestation.receipt is None


def test_before_use_gives_out_what_is_proven_and_nothing_else() -> None:
    """Events wait for the checkpoint that proves them, or for the end."""
    check = make(Verify.BEFORE_USE)
    given = [b"".join(check.feed(part, NOW)) for part in PARTS]
    assert given == [b"", b"", ONE + TWO, b"", THREE, b"", USAGE, b"", b""]
    assert check.attested
    assert check.finish(NOW) == DONE
    check = make(Verify.BEFORE_USE)
    assert [*check.feed(STREAM + ENCLAVE.comment(EXCHANGE, STREAM), NOW)] == []
    assert check.finish(NOW) == STREAM


def test_before_use_gives_out_nothing_that_was_changed() -> None:
    """An event changed before a checkpoint never reaches the consumer; nor does one that a cut left unproven."""
    check = make(Verify.BEFORE_USE)
    assert b"".join(check.feed(ONE.replace(b"assistant", b"tool") + TWO, NOW)) == b""
    with pytest.raises(AttestationError) as caught:
        check.feed(FIRST, NOW)
    assert caught.value.check is Check.RECEIPT_RESPONSE
    check = make(Verify.BEFORE_USE)
    assert b"".join(check.feed(ONE + TWO + FIRST + THREE, NOW)) == ONE + TWO
    with pytest.raises(AttestationError) as caught:
        check.finish(NOW)
    assert caught.value.check is Check.STREAM_TRUNCATED
    assert check.given == len(ONE + TWO)


def test_a_contradiction_raises_at_once() -> None:
    """The read that brings the checkpoint raises; nobody has to wait for the stream's end."""
    check = make()
    changed = TWO.replace(b"hel", b"hal")
    assert b"".join(check.feed(ONE + changed, NOW)) == ONE + changed
    with pytest.raises(AttestationError) as caught:
        check.feed(FIRST, NOW)
    assert caught.value.check is Check.RECEIPT_RESPONSE


def _lie(**how: Any) -> bytes:
    """The first checkpoint with one field that is not so, signed by the enclave all the same."""
    return ONE + TWO + checkpoint(1, ONE + TWO, **how)


def _request(**changes: Any) -> Request:
    asked = RunningDigest(EXCHANGE.nonce, EXCHANGE.body)
    request = Request(method=EXCHANGE.method, path=EXCHANGE.path, digest=asked.digest(), length=asked.length)
    return replace(request, **changes)


TABLE: dict[str, tuple[Check, bytes]] = {
    "the first dropped": (Check.STREAM_CHECKPOINT, b"".join(p for p in PARTS if p is not FIRST)),
    "one in the middle dropped": (Check.STREAM_CHECKPOINT, b"".join(p for p in PARTS if p is not SECOND)),
    "the last dropped": (Check.STREAM_CHECKPOINT, b"".join(p for p in PARTS if p is not THIRD)),
    "all dropped": (Check.STREAM_CHECKPOINT, STREAM + END),
    "two in another order": (
        Check.STREAM_CHECKPOINT,
        ONE + TWO + SECOND + THREE + FIRST + USAGE + DONE + END,
    ),
    "one twice": (Check.STREAM_CHECKPOINT, ONE + TWO + FIRST + FIRST + THREE + SECOND + USAGE + DONE + END),
    "one again later": (Check.STREAM_CHECKPOINT, ONE + TWO + FIRST + THREE + FIRST + USAGE + DONE + END),
    "an event too early": (Check.RECEIPT_RESPONSE, ONE + FIRST + TWO),
    "an event too late": (Check.RECEIPT_RESPONSE, ONE + TWO + THREE + FIRST),
    "after the receipt": (Check.RECEIPT_RESPONSE, WIRE + checkpoint(4, STREAM)),
    "of another stream with the same bytes": (
        Check.RECEIPT_REQUEST,
        ONE + TWO + checkpoint(1, ONE + TWO, exchange=OTHER),
    ),
    "of another answer to the same request": (
        Check.STREAM_CHECKPOINT,
        ONE + TWO + FIRST + THREE + checkpoint(2, ONE + TWO + THREE, id="r-2"),
    ),
    "the receipt of another answer": (
        Check.STREAM_CHECKPOINT,
        WIRE[: -len(END)] + ENCLAVE.comment(EXCHANGE, STREAM, checkpoints=3, id="r-2"),
    ),
    "of another enclave": (Check.RECEIPT_SIGNATURE, ONE + TWO + checkpoint(1, ONE + TWO, STRANGER)),
    "an event changed before one": (Check.RECEIPT_RESPONSE, ONE.replace(b"assistant", b"tool") + TWO + FIRST),
    "an event changed after one": (Check.RECEIPT_RESPONSE, WIRE.replace(b'"lo"', b'"la"')),
    "an event dropped before one": (Check.RECEIPT_RESPONSE, TWO + FIRST),
    "a line break more before one": (Check.RECEIPT_RESPONSE, ONE + TWO + b"\n" + FIRST),
    "cut right after one": (Check.STREAM_TRUNCATED, ONE + TWO + FIRST),
    "cut after [DONE] and one": (
        Check.STREAM_TRUNCATED,
        WIRE[: -len(END)] + checkpoint(4, STREAM),
    ),
    "cut inside one": (Check.STREAM_TRUNCATED, ONE + TWO + FIRST[:-9]),
    "one in the receipt's place": (Check.STREAM_TRUNCATED, STREAM + checkpoint(1, STREAM)),
    "a part called aborted": (Check.RECEIPT_OUTCOME, ONE + TWO + FIRST + CUT),
    "another outcome": (Check.RECEIPT_RESPONSE, _lie(outcome=Outcome.COMPLETE) + THREE),
    "a number too high": (Check.STREAM_CHECKPOINT, _lie(checkpoints=2)),
    "the number 0": (Check.STREAM_CHECKPOINT, _lie(checkpoints=0)),
    "a negative number": (Check.STREAM_CHECKPOINT, _lie(checkpoints=-1)),
    "another time": (Check.RECEIPT_TIME, _lie(time=int(NOW.timestamp()) + 301)),
    "another statement": (Check.RECEIPT_STATEMENT, _lie(statement=bytes(32))),
    "another model": (Check.RECEIPT_MODEL, _lie(model=ServedModel(name="m", digest=bytes(32)))),
    "another status": (Check.RECEIPT_STATUS, _lie(status=201)),
    "another digest": (
        Check.RECEIPT_RESPONSE,
        _lie(response=Response(status=200, digest=bytes(32), length=len(ONE + TWO))),
    ),
    "another length": (
        Check.RECEIPT_RESPONSE,
        _lie(
            response=Response(status=200, digest=RunningDigest(EXCHANGE.nonce, ONE + TWO).digest(), length=1)
        ),
    ),
    "another method": (Check.RECEIPT_REQUEST, _lie(request=_request(method="PUT"))),
    "another path": (Check.RECEIPT_REQUEST, _lie(request=_request(path="/v1/completions"))),
    "another request": (Check.RECEIPT_REQUEST, _lie(request=_request(digest=bytes(32)))),
    "another request's length": (Check.RECEIPT_REQUEST, _lie(request=_request(length=1))),
}


@pytest.mark.parametrize("verify", Verify)
@pytest.mark.parametrize("case", TABLE)
def test_tampering(case: str, verify: Verify) -> None:
    """Whatever is done to checkpoints, or to events around them, is refused by the check that says so."""
    check, wire = TABLE[case]
    assert refused(wire, verify=verify) is check


def test_every_byte_of_a_checkpoint() -> None:
    """A checkpoint changed in any character is none: its signature, its place or the events do not fit."""
    for at in range(len(FIRST)):
        changed = FIRST[:at] + bytes([FIRST[at] ^ 1]) + FIRST[at + 1 :]
        found = refused(ONE + TWO + changed + THREE + SECOND + USAGE + THIRD + DONE + END)
        inside = len(COMMENT) <= at < len(FIRST) - 2
        assert found in {Check.RECEIPT_FORMAT, Check.RECEIPT_SIGNATURE} or not inside, at


def test_a_stream_cut_anywhere_is_truncated() -> None:
    """Also with checkpoints every proper prefix is refused."""
    for length in range(0, len(WIRE), 7):
        assert refused(WIRE[:length]) is Check.STREAM_TRUNCATED, length


@pytest.mark.parametrize("verify", Verify)
def test_an_aborted_stream_hands_over_what_is_proven(verify: Verify) -> None:
    """The events, the engine's error, and then the refusal of whoever reads on."""
    events = ONE + TWO + THREE + ERROR
    end = ENCLAVE.comment(EXCHANGE, events, outcome=Outcome.ABORTED, checkpoints=1)
    check = make(verify)
    got = b"".join(check.feed(ONE + TWO + FIRST + THREE + ERROR + end, NOW)) + check.finish(NOW)
    assert got == events
    with pytest.raises(AttestationError) as caught:
        check.conclude()
    assert caught.value.check is Check.RECEIPT_OUTCOME


def test_a_checkpoint_is_no_plain_answer() -> None:
    """Only a stream goes on."""
    check = PlainCheck(EXCHANGE, 200, ENCLAVE.headers(EXCHANGE, ANSWER, outcome=Outcome.CHECKPOINT))
    check.feed(ANSWER)
    with pytest.raises(AttestationError) as caught:
        check.finish(NOW)
    assert caught.value.check is Check.RECEIPT_OUTCOME


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that never proves anything does not fill the memory of who wants proof before use."""
    monkeypatch.setattr("client_sdk.streams.MAX_HELD_BYTES", 200)
    give: Callable[[], object] = lambda: read(make(Verify.BEFORE_USE), *[ONE] * 10)  # noqa: E731
    with pytest.raises(AttestationError) as caught:
        give()
    assert caught.value.check is Check.STREAM_TRUNCATED


HEADS = (b'{"choices":[{"delta":{"content":"', b'{"error":"', b'{"a":"\\"content":"', b'{"text":"', b"{")
TAILS = (b'"}}]}', b'"}', b'","error":1}', b"}", b"")
TEXTS = (
    st.text().map(str.encode)
    | st.binary(max_size=4)
    | st.sampled_from((b'","error":"', b"\n\ndata: ", b"\\"))
)


@given(
    st.lists(
        st.builds(
            lambda *parts: b"data: " + b"".join(parts) + b"\n\n",
            st.sampled_from(HEADS),
            TEXTS,
            st.sampled_from(TAILS),
        ),
        max_size=6,
    )
)
def test_an_event_passes_as_it_does_by_itself(events: list[bytes]) -> None:
    """What came before an event makes it quicker to read, and changes nothing of whether it is given out."""
    check = make()
    for event in events:
        assert check.passes(event) == _is_usual(event)
