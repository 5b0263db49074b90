"""Receipts over raw bytes: what is given out, what is held back, and when."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.receipt import COMMENT, MAX_CLOCK_SKEW, RECEIPT_HEADER, Outcome, Request, RunningDigest
from client_sdk import streams
from client_sdk.exchange import Exchange
from client_sdk.receipts import Attestation, PlainCheck, check_answer
from client_sdk.streams import StreamCheck
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, PROMPT, PretendEnclave, stream_headers

ENCLAVE = PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
STREAM = b"".join(EVENTS)
WIRE = STREAM + ENCLAVE.comment(EXCHANGE, STREAM)
ERROR = b'data: {"error":{"message":"the engine died","type":"engine_error","code":"engine_aborted"}}\n\n'
REFUSAL = b'{"error":{"message":"too large","type":"invalid_request_error","param":null,"code":"too_large"}}'


def plain(answer: bytes, headers: dict[str, str], status: int = 200, exchange: Exchange = EXCHANGE) -> bytes:
    check = PlainCheck(exchange, status, headers)
    check.feed(answer)
    return check.finish(NOW)


def fed(check: StreamCheck, read: bytes) -> bytes:
    """What a stream gives out on one read."""
    return b"".join(check.feed(read, NOW))


def stream(*reads: bytes, exchange: Exchange = EXCHANGE) -> bytes:
    """Everything that a stream gives out, read to its end."""
    check = StreamCheck(exchange, 200, stream_headers(exchange))
    out = b"".join(fed(check, read) for read in reads) + check.finish(NOW)
    check.conclude()
    assert check.receipt is not None
    return out


def failed(error: pytest.ExceptionInfo[AttestationError]) -> Check:
    return error.value.check


class TestPlain:
    def test_a_whole_answer_is_given_out_as_it_was(self) -> None:
        """The body of a verified answer, byte for byte."""
        assert plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER)) == ANSWER

    def test_an_error_may_cover_the_part_of_the_request_that_was_read(self) -> None:
        """A gateway that refuses early signs the prefix it had read, and only with the outcome error."""
        for read in (0, 1, len(PROMPT) - 1, len(PROMPT)):
            digest = RunningDigest(EXCHANGE.nonce, PROMPT[:read])
            asked = Request(method="POST", path=EXCHANGE.path, digest=digest.digest(), length=read)
            headers = ENCLAVE.headers(EXCHANGE, REFUSAL, status=413, outcome=Outcome.ERROR, request=asked)
            assert plain(REFUSAL, headers, 413) == REFUSAL
            if read < len(PROMPT):
                headers = ENCLAVE.headers(EXCHANGE, ANSWER, request=asked)
                with pytest.raises(VerificationError) as caught:
                    plain(ANSWER, headers)
                assert failed(caught) is Check.RECEIPT_REQUEST

    @pytest.mark.parametrize(
        ("status", "outcome"), [(200, Outcome.ERROR), (200, Outcome.ABORTED), (500, Outcome.COMPLETE)]
    )
    def test_outcome_and_status_agree(self, status: int, outcome: Outcome) -> None:
        """An error is no answer, and an answer no error."""
        with pytest.raises(VerificationError) as caught:
            plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, status=status, outcome=outcome), status)
        assert failed(caught) is Check.RECEIPT_OUTCOME

    def test_an_answer_without_a_receipt_is_refused(self) -> None:
        """A missing receipt is no receipt."""
        headers = ENCLAVE.headers(EXCHANGE, ANSWER)
        del headers[RECEIPT_HEADER]
        with pytest.raises(VerificationError) as caught:
            plain(ANSWER, headers)
        assert failed(caught) is Check.RECEIPT_MISSING

    def test_a_content_coding_is_refused(self) -> None:
        """The gateway uses none; a client that decoded one would read other bytes than those signed."""
        headers = ENCLAVE.headers(EXCHANGE, ANSWER) | {"Content-Encoding": "gzip"}
        with pytest.raises(VerificationError) as caught:
            check_answer(EXCHANGE, 200, headers)
        assert failed(caught) is Check.RECEIPT_RESPONSE

    def test_an_old_receipt_is_refused(self) -> None:
        """Clocks may differ by five minutes."""
        check = PlainCheck(EXCHANGE, 200, ENCLAVE.headers(EXCHANGE, ANSWER))
        check.feed(ANSWER)
        with pytest.raises(VerificationError) as caught:
            check.finish(NOW + timedelta(seconds=MAX_CLOCK_SKEW + 1))
        assert failed(caught) is Check.RECEIPT_TIME


class TestStream:
    def test_it_gives_out_the_engines_bytes_without_the_receipt(self) -> None:
        """What comes out is what the engine wrote."""
        assert stream(WIRE) == STREAM

    @given(st.lists(st.integers(0, len(WIRE)), max_size=12))
    @settings(max_examples=60, deadline=None)
    def test_reads_may_be_cut_anywhere(self, cuts: list[int]) -> None:
        """How the network cuts a stream changes nothing."""
        edges = [0, *sorted(cuts), len(WIRE)]
        assert stream(*(WIRE[a:b] for a, b in itertools.pairwise(edges))) == STREAM

    def test_byte_by_byte(self) -> None:
        """One byte per read is a stream too."""
        assert stream(*(WIRE[i : i + 1] for i in range(len(WIRE)))) == STREAM

    def test_a_long_event_byte_by_byte(self) -> None:
        """Many small reads of one long event cost hardly more than as many of short ones: what is there is not read again."""

        def cost(size: int) -> float:
            event = b'data: {"choices":[{"text":"%b"}]}\n\n' % (b"x" * size)
            events = event * (200_000 // len(event))
            check, started = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE)), time.process_time()
            out = [piece for i in range(len(events)) for piece in check.feed(events[i : i + 1], NOW)]
            assert b"".join(out) == events
            return time.process_time() - started

        assert cost(199_000) < 8 * cost(1000)

    def test_events_go_out_at_once_and_the_end_does_not(self) -> None:
        """Every event but the terminal one is given out when it is whole; [DONE] only with the verified receipt."""
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        for event in EVENTS[:-1]:
            assert fed(check, event[:10]) == b""
            assert fed(check, event[10:]) == event
        assert fed(check, EVENTS[-1]) == b""
        assert fed(check, WIRE[len(STREAM) :]) == b""
        assert check.receipt is None
        assert check.finish(NOW) == EVENTS[-1]
        assert check.receipt is not None

    @pytest.mark.parametrize(
        "terminal",
        [
            b"data:[DONE]\n\n",
            b"data:  [DONE]\n\n",
            b"id: 1\ndata: [DONE]\n\n",
            b"id: 1\rdata: [DONE]\n\n",
            b"\n\xef\xbb\xbfdata: [DONE]\n\n",
            b'data: {"error":"x"}\n\n',
            b'data:{ "error": {"a": 1}}\n\n',
            b'data: {"id":1,"error":"x"}\n\n',
            b'data: {"id":1,\ndata: "error":"x"}\n\n',
            b'data: {"id":1\n\n',
            b"data: 1\n\n",
            b"data\n\n",
            b'data: {"id":"\xff"}\n\n',
            b"data: " + b"[" * 100_000 + b"\n\n",
        ],
    )
    def test_nothing_at_which_a_client_stops_goes_out_before_the_receipt(self, terminal: bytes) -> None:
        """However a terminal event is spelled, it is held back."""
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        assert fed(check, EVENTS[0] + terminal + EVENTS[1]) in {EVENTS[0], EVENTS[0] + b"\n"}
        with pytest.raises(VerificationError) as caught:
            check.finish(NOW)
        assert failed(caught) is Check.STREAM_TRUNCATED

    def test_a_model_may_speak_of_done_and_error(self) -> None:
        """Text inside an event holds nothing back; neither do comments and other fields."""
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        for event in (b": ping\n\n", b"\n\n", b"event: x\nid: 1\ndata: {}\n\n", b'data: {"error":null}\n\n'):
            assert fed(check, event) == event
        event = (
            b'data: {"choices":[{"delta":{"content":"data: [DONE] and \\"error\\" and : attested x"}}]}\n\n'
        )
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        assert fed(check, event) == event

    def test_a_stream_cut_anywhere_is_truncated(self) -> None:
        """Every proper prefix of the wire is refused as truncated, also those that end with an event."""
        for length in range(len(WIRE)):
            with pytest.raises(VerificationError) as caught:
                stream(WIRE[:length])
            assert failed(caught) is Check.STREAM_TRUNCATED, length

    def test_an_empty_stream_needs_its_receipt_too(self) -> None:
        """No events at all is still an answer."""
        assert stream(ENCLAVE.comment(EXCHANGE, b"")) == b""

    @pytest.mark.parametrize("extra", [b"x", b"\n", b"data: more\n\n", WIRE[len(STREAM) :]])
    def test_nothing_may_follow_the_receipt(self, extra: bytes) -> None:
        """The receipt is the last thing on the wire; a second one is too much."""
        with pytest.raises(VerificationError) as caught:
            stream(WIRE + extra)
        assert failed(caught) is Check.RECEIPT_RESPONSE

    def test_an_event_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Memory is bounded, for an event that never ends and for what follows a terminal one."""
        monkeypatch.setattr(streams, "MAX_HELD_BYTES", 1000)
        with pytest.raises(MalformedError):
            stream(b"data: " + b"x" * 1000)
        with pytest.raises(MalformedError):
            stream(*[b"data: [DONE]\n\n"] * 100)

    @pytest.mark.parametrize("token", [b"", b"x", b"\xff", b"a.b.c", b"a\nb"])
    def test_a_comment_that_is_no_receipt_is_malformed(self, token: bytes) -> None:
        """Any bytes in the receipt's place give one kind of error."""
        with pytest.raises(MalformedError) as caught:
            stream(STREAM + COMMENT + token + b"\n\n")
        assert failed(caught) is Check.RECEIPT_FORMAT

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_with_a_check(self, data: bytes) -> None:
        """Garbage is never taken for a stream, and never raises anything else."""
        with pytest.raises(AttestationError):
            stream(data)


class TestAborted:
    def aborted(self, events: bytes) -> StreamCheck:
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        fed(check, events + ENCLAVE.comment(EXCHANGE, events, outcome=Outcome.ABORTED))
        return check

    @pytest.mark.parametrize("tail", [b"", EVENTS[-1]])
    def test_the_error_is_handed_over_and_then_nothing(self, tail: bytes) -> None:
        """The client raises the engine's own error; one that reads on learns that the stream was cut short."""
        check = self.aborted(EVENTS[0] + ERROR + tail)
        assert check.finish(NOW) == ERROR
        assert check.receipt is not None
        assert check.receipt.outcome is Outcome.ABORTED
        with pytest.raises(VerificationError) as caught:
            check.conclude()
        assert failed(caught) is Check.RECEIPT_OUTCOME

    @pytest.mark.parametrize("end", [b"", EVENTS[-1], b'data: {"error":null}\n\n', b'data: {"error"\n\n'])
    def test_without_an_error_to_hand_over_it_raises(self, end: bytes) -> None:
        """An aborted stream never looks like a whole one."""
        with pytest.raises(VerificationError) as caught:
            self.aborted(EVENTS[0] + end).finish(NOW)
        assert failed(caught) is Check.RECEIPT_OUTCOME

    def test_the_receipt_of_an_aborted_stream_is_checked_as_any(self) -> None:
        """An error that the enclave did not send is not handed over."""
        check = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
        fed(check, ERROR + ENCLAVE.comment(EXCHANGE, EVENTS[0] + ERROR, outcome=Outcome.ABORTED))
        with pytest.raises(VerificationError) as caught:
            check.finish(NOW)
        assert failed(caught) is Check.RECEIPT_RESPONSE


def test_the_content_type_chooses_the_check() -> None:
    """An event stream is checked as one, whatever its parameters; anything else is plain."""
    streamed = check_answer(EXCHANGE, 200, stream_headers(EXCHANGE))
    assert isinstance(streamed, StreamCheck)
    whole = check_answer(EXCHANGE, 200, ENCLAVE.headers(EXCHANGE, ANSWER))
    assert isinstance(whole, PlainCheck)
    assert Attestation(EXCHANGE.verdict, whole).receipt is None
    assert Attestation(EXCHANGE.verdict).receipt is None
