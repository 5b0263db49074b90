"""The tamper table: everything that somebody between an enclave and its user may try, and the check that refuses it.

The first tables work on bytes, without sockets, and flip every single one. The last ones sit as a middleware between the
real gateway and OpenAI's own client, blocking and async, plain and streamed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509 import load_der_x509_crl

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.collateral import Collateral, IntelCollateral
from attestation.errors import AttestationError
from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.receipt import (
    COMMENT,
    NONCE_HEADER,
    RECEIPT_HEADER,
    Outcome,
    Request,
    RunningDigest,
    ServedModel,
)
from attestation.verify import verify
from client_sdk import AsyncOpenAI, OpenAI
from client_sdk.receipts import Exchange, PlainCheck, StreamCheck
from client_sdk.session import Session
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, POLICY, PROMPT, PretendEnclave, stream_headers
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

ENCLAVE, STRANGER = PretendEnclave(), PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
NONCE = b"\x06" * 32
EVIDENCE = ENCLAVE.evidence(NONCE)
STREAM = b"".join(EVENTS)
RECEIPT_CHECKS = {Check.RECEIPT_FORMAT, Check.RECEIPT_SIGNATURE}


def flips(data: bytes, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """Every byte changed, one at a time: another bit of it each time."""
    for at in range(0, len(data), step):
        yield at, data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def plain(
    answer: bytes, headers: Mapping[str, str], status: int = 200, exchange: Exchange = EXCHANGE
) -> None:
    check = PlainCheck(exchange, status, headers)
    check.feed(answer)
    check.finish(NOW)


def stream(wire: bytes, exchange: Exchange = EXCHANGE) -> None:
    check = StreamCheck(exchange, 200, stream_headers(exchange))
    for _ in check.feed(wire, NOW):
        pass
    check.finish(NOW)
    check.conclude()


def refused(call: Callable[..., object], *args: Any, **kwargs: Any) -> Check:
    """The check that refuses; that nothing does is the failure these tests are about."""
    with pytest.raises(AttestationError) as caught:
        call(*args, **kwargs)
    return caught.value.check


# ------------------------------------------------------------------------------------------ evidence, byte by byte


def judge(evidence: Evidence) -> None:
    verify(evidence, POLICY, nonce=NONCE, now=NOW)


def judged(evidence: Evidence) -> Check | None:
    try:
        judge(evidence)
    except AttestationError as error:
        return error.check
    return None


def test_the_untouched_evidence_is_accepted() -> None:
    """The tables below change what is good, and nothing else is wrong with it."""
    judge(EVIDENCE)


def test_every_byte_of_the_statement() -> None:
    """A changed statement is malformed, or not what the hardware signed."""
    for at, statement in flips(EVIDENCE.statement):
        check = refused(judge, replace(EVIDENCE, statement=statement))
        assert check in {Check.STATEMENT_FORMAT, Check.BINDING_REPORT_DATA}, at


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_byte_of_the_quote(step: int) -> None:
    """Each byte of header, report, signatures, QE report and certificate chain is signed by somebody."""
    assert isinstance(EVIDENCE.cpu, TdxEvidence)
    seen = set()
    for at, quote in flips(EVIDENCE.cpu.quote, step):
        check = judged(replace(EVIDENCE, cpu=TdxEvidence(quote)))
        if check is None:
            assert same_certificates(EVIDENCE.cpu.quote, quote), at
        else:
            assert check.startswith("tdx."), at
            seen.add(check)
    assert {
        Check.TDX_FORMAT,
        Check.TDX_QUOTE_SIGNATURE,
        Check.TDX_QE_REPORT_SIGNATURE,
        Check.TDX_AK_BINDING,
    } <= seen


def same_certificates(quote: bytes, changed: bytes) -> bool:
    """PEM leaves some freedom (line ends, text between blocks): then the certificates themselves are the same."""
    start = quote.find(b"-----BEGIN")
    return quote[:start] == changed[:start] and len(quote) == len(changed)


#: Nothing rests on this one: the chain that the quote itself carries is what has to issue the PCK CRL.
UNUSED = "pck_crl_issuer_chain"


@pytest.mark.parametrize("name", sorted({f.name for f in dataclasses.fields(IntelCollateral)} - {UNUSED}))
def test_every_byte_of_the_collateral(name: str) -> None:
    """Certificates, revocation lists, TCB info and QE identity: changed anywhere, they vouch for nothing."""
    intel = EVIDENCE.collateral.intel
    assert intel is not None
    value: str | bytes = getattr(intel, name)
    raw = value.encode() if isinstance(value, str) else value
    # how many bits of a signature's last byte do not count: a number in its wrapping that nobody signs, or needs
    unsigned = raw.index(load_der_x509_crl(raw).signature) - 1 if name.endswith("crl") else None
    refusals = 0
    for at, changed in flips(raw, step=max(1, len(raw) // 400)):
        new: Any = changed.decode("latin-1") if isinstance(value, str) else changed
        check = judged(replace(EVIDENCE, collateral=Collateral(intel=replace(intel, **{name: new}))))
        assert check is None or check.startswith("tdx."), at
        # PEM leaves some freedom in line ends and in text between blocks
        assert check is not None or name.endswith("chain") or at == unsigned, (
            f"{name}: byte {at} can be changed unseen"
        )
        refusals += check is not None
    assert refusals > len(raw) // 1000


EVIDENCE_TABLE: dict[str, tuple[Check, Callable[[Session, bytes], object]]] = {
    "evidence of another nonce": (
        Check.BINDING_REPORT_DATA,
        lambda s, nonce: s.accept(ENCLAVE.document(bytes(32)), b64url_encode(nonce), NOW),
    ),
    "an answer that names another nonce": (
        Check.BINDING_NONCE,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce), b64url_encode(bytes(32)), NOW),
    ),
    "an answer that names no nonce": (
        Check.BINDING_NONCE,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce), None, NOW),
    ),
    "the statement of another enclave": (
        Check.BINDING_REPORT_DATA,
        lambda s, nonce: s.accept(
            dump_evidence(replace(ENCLAVE.evidence(nonce), statement=STRANGER.statement)),
            b64url_encode(nonce),
            NOW,
        ),
    ),
    "an expired statement": (
        Check.STATEMENT_VALIDITY,
        lambda s, nonce: s.accept(
            PretendEnclave(not_after=NOW - timedelta(seconds=1)).document(nonce), b64url_encode(nonce), NOW
        ),
    ),
    "collateral taken away": (
        Check.COLLATERAL_MISSING,
        lambda s, nonce: s.accept(
            dump_evidence(replace(ENCLAVE.evidence(nonce), collateral=Collateral())),
            b64url_encode(nonce),
            NOW,
        ),
    ),
    "a document cut short": (
        Check.EVIDENCE_FORMAT,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce)[:-1], b64url_encode(nonce), NOW),
    ),
}


@pytest.mark.parametrize("case", EVIDENCE_TABLE)
def test_evidence(case: str) -> None:
    """Evidence that is not for this nonce, this enclave and this moment gives no verdict."""
    check, accept = EVIDENCE_TABLE[case]
    session = Session(POLICY)
    assert refused(accept, session, session.begin()) is check


# ------------------------------------------------------------------------------------ plain answers, byte by byte


def test_every_byte_of_the_request() -> None:
    """An enclave that got another request than the one sent gives itself away."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, body in flips(PROMPT):
        assert (
            refused(plain, ANSWER, headers, exchange=replace(EXCHANGE, body=body)) is Check.RECEIPT_REQUEST
        ), at
    for at, path in flips(EXCHANGE.path.encode()):
        asked = replace(EXCHANGE, path=path.decode("latin-1"))
        assert refused(plain, ANSWER, headers, exchange=asked) is Check.RECEIPT_REQUEST, at
    assert refused(plain, ANSWER, headers, exchange=replace(EXCHANGE, method="PUT")) is Check.RECEIPT_REQUEST


def test_every_byte_of_an_answer() -> None:
    """A changed, shortened or lengthened answer is not what was signed."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, answer in flips(ANSWER):
        assert refused(plain, answer, headers) is Check.RECEIPT_RESPONSE, at
    for length in range(len(ANSWER)):
        assert refused(plain, ANSWER[:length], headers) is Check.RECEIPT_RESPONSE, length
    assert refused(plain, ANSWER + b" ", headers) is Check.RECEIPT_RESPONSE


def test_every_byte_of_a_receipt() -> None:
    """A receipt changed in any character is no receipt."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, token in flips(headers[RECEIPT_HEADER].encode()):
        changed = headers | {RECEIPT_HEADER: token.decode("latin-1")}
        assert refused(plain, ANSWER, changed) in RECEIPT_CHECKS, at


def test_every_byte_of_an_answers_nonce() -> None:
    """The answer names the request's nonce."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, nonce in flips(headers[NONCE_HEADER].encode()):
        changed = headers | {NONCE_HEADER: nonce.decode("latin-1")}
        assert refused(plain, ANSWER, changed) is Check.RECEIPT_REQUEST, at


SECOND = replace(EXCHANGE, nonce=b"\x0a" * 32)  # the same request once more, with a nonce of its own

OTHER_MODEL = ServedModel(name="m", digest=b"\x02" * 32)

PLAIN_TABLE: dict[str, tuple[Check, Callable[[], object]]] = {
    "a missing receipt": (
        Check.RECEIPT_MISSING,
        lambda: plain(ANSWER, {NONCE_HEADER: b64url_encode(EXCHANGE.nonce)}),
    ),
    "a receipt of another request": (
        Check.RECEIPT_REQUEST,
        lambda: plain(ANSWER, ENCLAVE.headers(replace(EXCHANGE, body=b"{}"), ANSWER)),
    ),
    "a receipt replayed to a second identical request": (
        Check.RECEIPT_REQUEST,
        lambda: plain(
            ANSWER,
            ENCLAVE.headers(EXCHANGE, ANSWER) | {NONCE_HEADER: b64url_encode(SECOND.nonce)},
            exchange=SECOND,
        ),
    ),
    "an answer and its receipt of another enclave": (
        Check.RECEIPT_SIGNATURE,
        lambda: plain(ANSWER, STRANGER.headers(EXCHANGE, ANSWER)),
    ),
    "a receipt signed by a key that is not in the statement": (
        Check.RECEIPT_SIGNATURE,
        lambda: plain(ANSWER, PretendEnclave(tls_spki=ENCLAVE.tls_spki).headers(EXCHANGE, ANSWER)),
    ),
    "a receipt under another statement of the same key": (
        Check.RECEIPT_STATEMENT,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, statement=b"\x01" * 32)),
    ),
    "a receipt for another model": (
        Check.RECEIPT_MODEL,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, model=OTHER_MODEL)),
    ),
    "a changed status": (
        Check.RECEIPT_STATUS,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER), status=201),
    ),
    "an error called an answer": (
        Check.RECEIPT_STATUS,
        lambda: plain(
            ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, status=500, outcome=Outcome.ERROR), status=200
        ),
    ),
    "a receipt of long ago": (
        Check.RECEIPT_TIME,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, time=int(NOW.timestamp()) - 301)),
    ),
    "an aborted answer": (
        Check.RECEIPT_OUTCOME,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, outcome=Outcome.ABORTED)),
    ),
    "a part of the request, answered as if it were all": (
        Check.RECEIPT_REQUEST,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, request=_part())),
    ),
}


def _part() -> Request:
    digest = RunningDigest(EXCHANGE.nonce, PROMPT[:5])
    return Request(method="POST", path=EXCHANGE.path, digest=digest.digest(), length=5)


@pytest.mark.parametrize("case", PLAIN_TABLE)
def test_plain(case: str) -> None:
    """A receipt that is about anything else than this exchange is refused by the check that says so."""
    check, attempt = PLAIN_TABLE[case]
    assert refused(attempt) is check


# ------------------------------------------------------------------------------------------ streams, byte by byte

COMMENTED = ENCLAVE.comment(EXCHANGE, STREAM)
ONE, TWO, THREE, USAGE, DONE = EVENTS


def test_every_byte_of_a_stream() -> None:
    """An event changed anywhere is refused, at the latest when the stream ends; no change makes an event of none."""
    for at, changed in flips(STREAM):
        # a changed blank line may leave [DONE] or the receipt itself inside another event
        assert refused(stream, changed + COMMENTED) in {Check.RECEIPT_RESPONSE, Check.STREAM_TRUNCATED}, at


def test_every_byte_of_a_streams_receipt() -> None:
    """What is not the receipt any more is a part of the answer without one, or a receipt that does not verify."""
    for at, changed in flips(COMMENTED):
        assert refused(stream, STREAM + changed) in {*RECEIPT_CHECKS, Check.STREAM_TRUNCATED}, at


def test_a_stream_cut_at_every_byte() -> None:
    """Also exactly where an event ends, and just before the receipt."""
    wire = STREAM + COMMENTED
    for length in range(len(wire)):
        assert refused(stream, wire[:length]) is Check.STREAM_TRUNCATED, length


STREAM_TABLE: dict[str, tuple[Check, bytes]] = {
    "an event dropped": (Check.RECEIPT_RESPONSE, ONE + THREE + USAGE + DONE),
    "the first event dropped": (Check.RECEIPT_RESPONSE, TWO + THREE + USAGE + DONE),
    "[DONE] dropped": (Check.RECEIPT_RESPONSE, ONE + TWO + THREE + USAGE),
    "two events in another order": (Check.RECEIPT_RESPONSE, ONE + THREE + TWO + USAGE + DONE),
    "an event twice": (Check.RECEIPT_RESPONSE, ONE + TWO + TWO + THREE + USAGE + DONE),
    "[DONE] twice": (Check.RECEIPT_RESPONSE, STREAM + DONE),
    "an event added": (Check.RECEIPT_RESPONSE, ONE + TWO + b"data: {}\n\n" + THREE + USAGE + DONE),
    "a comment added": (Check.RECEIPT_RESPONSE, ONE + TWO + b": ping\n\n" + THREE + USAGE + DONE),
    "a blank line added": (Check.RECEIPT_RESPONSE, ONE + b"\n" + TWO + THREE + USAGE + DONE),
    "[DONE] spelled in another way": (Check.RECEIPT_RESPONSE, ONE + TWO + THREE + USAGE + b"data:[DONE]\n\n"),
    "an early [DONE]": (Check.RECEIPT_RESPONSE, ONE + DONE + TWO + THREE + USAGE + DONE),
    "an error in place of the end": (Check.RECEIPT_RESPONSE, ONE + b'data: {"error":{"message":"x"}}\n\n'),
    "nothing but the receipt": (Check.RECEIPT_RESPONSE, b""),
    "two receipts": (Check.RECEIPT_RESPONSE, STREAM + COMMENTED),
}


@pytest.mark.parametrize("case", STREAM_TABLE)
def test_stream(case: str) -> None:
    """Whatever is done to the events, their receipt does not fit any more."""
    check, events = STREAM_TABLE[case]
    assert refused(stream, events + COMMENTED) is check


STREAM_RECEIPTS: dict[str, tuple[Check, Callable[[], object]]] = {
    "the receipt in the middle": (Check.RECEIPT_RESPONSE, lambda: stream(ONE + COMMENTED + TWO + DONE)),
    "the receipt of another request": (
        Check.RECEIPT_REQUEST,
        lambda: stream(STREAM + ENCLAVE.comment(replace(EXCHANGE, body=b"{}"), STREAM)),
    ),
    "a stream and its receipt replayed to a second identical request": (
        Check.RECEIPT_REQUEST,
        lambda: stream(STREAM + COMMENTED, SECOND),
    ),
    "the receipt of another enclave": (
        Check.RECEIPT_SIGNATURE,
        lambda: stream(STREAM + STRANGER.comment(EXCHANGE, STREAM)),
    ),
    "the receipt of another model": (
        Check.RECEIPT_MODEL,
        lambda: stream(STREAM + ENCLAVE.comment(EXCHANGE, STREAM, model=OTHER_MODEL)),
    ),
    "the receipt of an error": (
        Check.RECEIPT_STATUS,
        lambda: stream(STREAM + ENCLAVE.comment(EXCHANGE, STREAM, status=500, outcome=Outcome.ERROR)),
    ),
}


@pytest.mark.parametrize("case", STREAM_RECEIPTS)
def test_receipts_of_streams(case: str) -> None:
    """In another place, or of another exchange, enclave or model."""
    check, attempt = STREAM_RECEIPTS[case]
    assert refused(attempt) is check


# ---------------------------------------------------------------------- between the real gateway and OpenAI's client

Scope = dict[str, Any]


@dataclass
class Meddler:
    """An ASGI middleware that changes what the gateway says on /v1: `edit(status, headers, body)` of whole answers."""

    edit: Callable[[int, dict[bytes, bytes], bytes], tuple[int, dict[bytes, bytes], bytes]] | None = None
    ask: Callable[[bytes], bytes] | None = None  # changes a request's body on its way to the gateway
    seen: list[tuple[dict[bytes, bytes], bytes]] = field(default_factory=list)

    def wrap(self, app: Any) -> Any:
        async def meddled(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
                await app(scope, receive, send)
                return
            status, headers, body = await self._whole(app, scope, receive)
            self.seen.append((headers, body))
            if self.edit is not None:
                status, headers, body = self.edit(status, headers, body)
            headers.pop(b"content-length", None)
            await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
            await send({"type": "http.response.body", "body": body})

        return meddled

    async def _whole(self, app: Any, scope: Scope, receive: Any) -> tuple[int, dict[bytes, bytes], bytes]:
        messages: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            messages.append(message)

        async def changed() -> Any:
            message = await receive()
            if self.ask is not None and message.get("body"):
                return {**message, "body": self.ask(message["body"])}
            return message

        await app(scope, changed, keep)
        body = b"".join(m.get("body", b"") for m in messages)
        return messages[0]["status"], dict(messages[0]["headers"]), body


@dataclass
class Rig:
    gateway: LiveGateway
    meddler: Meddler


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The real gateway with somebody in the middle."""
    folder, meddler = tmp_path_factory.mktemp("tamper"), Meddler()
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=meddler.wrap) as running,
    ):
        yield Rig(running, meddler)


@pytest.fixture
def meddler(rig: Rig) -> Iterator[Meddler]:
    """The one in the middle, who does nothing yet."""
    rig.meddler.seen.clear()
    yield rig.meddler
    rig.meddler.edit = rig.meddler.ask = None


# unsealed, so that there is something to meddle with: a seal leaves nothing to change but itself
PINNED: dict[str, Any] = {"api_key": "k", "channel": "pinned"}
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you there"}]}
USED = {"stream_options": {"include_usage": True}}


def ask_blocking(rig: Rig, streamed: bool) -> str:
    client: Any
    with OpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
        if not streamed:
            return str(client.chat.completions.create(**ASKED).choices[0].message.content)
        with client.chat.completions.create(stream=True, **ASKED, **USED) as events:
            return "".join(c.delta.content or "" for event in events for c in event.choices)


def ask_async(rig: Rig, streamed: bool) -> str:
    async def work() -> str:
        client: Any
        async with AsyncOpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
            if not streamed:
                return str((await client.chat.completions.create(**ASKED)).choices[0].message.content)
            async with await client.chat.completions.create(stream=True, **ASKED, **USED) as events:
                return "".join([c.delta.content or "" async for event in events for c in event.choices])

    return asyncio.run(work())


ASK = pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


def in_json(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A change to what an answer says, plain or in the first event of a stream that has the place for it."""

    def edit(body: bytes) -> bytes:
        if not body.startswith(b"data: "):
            value = json.loads(body)
            change(value)
            return json.dumps(value, separators=(",", ":")).encode()
        events = body.split(b"\n\n")
        for at, event in enumerate(events):
            if event.startswith(b"data: {"):
                value = json.loads(event[6:])
                before = json.dumps(value)
                try:
                    change(value)
                except (LookupError, TypeError):
                    continue
                if json.dumps(value) != before:
                    events[at] = b"data: " + json.dumps(value, separators=(",", ":")).encode()
                    break
        return b"\n\n".join(events)

    return edit


def _said(value: dict[str, Any]) -> dict[str, Any]:
    """The message of a plain answer, the delta of an event."""
    choice: dict[str, Any] = value["choices"][0]
    said: dict[str, Any] = choice["message"] if "message" in choice else choice["delta"]
    return said


def _text(value: dict[str, Any]) -> None:
    said = _said(value)
    if said["content"]:
        said["content"] = "bye"


def _model_name(value: dict[str, Any]) -> None:
    value["model"] = "a-better-model"


def _usage(value: dict[str, Any]) -> None:
    value["usage"]["completion_tokens"] += 1000


def _finish(value: dict[str, Any]) -> None:
    if value["choices"][0]["finish_reason"]:
        value["choices"][0]["finish_reason"] = "length"


def _second_choice(value: dict[str, Any]) -> None:
    value["choices"].append({**value["choices"][0], "index": 1})


TOOL = {"index": 0, "id": "t", "type": "function", "function": {"name": "pay", "arguments": "{}"}}


def _tool_call(value: dict[str, Any]) -> None:
    _said(value)["tool_calls"] = [TOOL]


def _text_beside_tool_call(value: dict[str, Any]) -> None:
    said = _said(value)
    said["content"], said["tool_calls"] = "I paid.", [TOOL]


SAYS = {
    "another text": _text,
    "another model": _model_name,
    "other usage": _usage,
    "another finish_reason": _finish,
    "a second choice": _second_choice,
    "a tool call": _tool_call,
    "text beside a tool call": _text_beside_tool_call,
}


@ASK
@STREAMED
def test_live_untouched(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool) -> None:
    """With nobody meddling the answer arrives."""
    assert ask(rig, streamed) == "You said: hello you there"


@ASK
@STREAMED
@pytest.mark.parametrize("what", SAYS)
def test_live_changed_words(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool, what: str
) -> None:
    """OpenAI's client gets an error instead of an answer that says something else."""
    change = in_json(SAYS[what])
    meddler.edit = lambda status, headers, body: (status, headers, change(body))
    assert refused(ask, rig, streamed) is Check.RECEIPT_RESPONSE
    assert len(meddler.seen) == 1, "a refusal is not retried"
    assert change(meddler.seen[0][1]) != meddler.seen[0][1]


Edit = Callable[[int, dict[bytes, bytes], bytes], tuple[int, dict[bytes, bytes], bytes]]


def _header(name: str, change: Callable[[bytes], bytes | None]) -> Edit:
    def edit(status: int, headers: dict[bytes, bytes], body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        key = name.lower().encode()
        value = change(headers.pop(key, b""))
        return status, headers | ({key: value} if value is not None else {}), body

    return edit


def _body(change: Callable[[bytes], bytes]) -> Edit:
    return lambda status, headers, body: (status, headers, change(body))


def _flip(at: int, bits: int = 1) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


LIVE_PLAIN: dict[str, tuple[Check, Edit]] = {
    "no receipt": (Check.RECEIPT_MISSING, _header(RECEIPT_HEADER, lambda _: None)),
    "a changed receipt": (Check.RECEIPT_SIGNATURE, _header(RECEIPT_HEADER, _flip(200))),
    "another nonce": (
        Check.RECEIPT_REQUEST,
        _header(NONCE_HEADER, lambda _: b64url_encode(bytes(32)).encode()),
    ),
    "no nonce": (Check.RECEIPT_REQUEST, _header(NONCE_HEADER, lambda _: None)),
    "another status": (Check.RECEIPT_STATUS, lambda status, headers, body: (201, headers, body)),
    "an error made of an answer": (Check.RECEIPT_STATUS, lambda status, headers, body: (503, headers, body)),
    "a content coding": (Check.RECEIPT_RESPONSE, _header("Content-Encoding", lambda _: b"deflate")),
    "called a stream": (Check.STREAM_TRUNCATED, _header("Content-Type", lambda _: b"text/event-stream")),
    "a byte more": (Check.RECEIPT_RESPONSE, _body(lambda body: body + b"\n")),
    "a byte less": (Check.RECEIPT_RESPONSE, _body(lambda body: body[:-1])),
}


@ASK
@pytest.mark.parametrize("what", LIVE_PLAIN)
def test_live_plain(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], what: str) -> None:
    """Headers, status and length of a plain answer."""
    check, meddler.edit = LIVE_PLAIN[what]
    assert refused(ask, rig, False) is check
    assert len(meddler.seen) == 1, "a refusal is not retried"


def _events(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    """A change to the order or number of events; the last one is the receipt's comment."""
    return lambda body: b"".join(change([e + b"\n\n" for e in body.split(b"\n\n")[:-1]]))


LIVE_STREAMED: dict[str, tuple[Check, Callable[[bytes], bytes]]] = {
    "an event dropped": (Check.RECEIPT_RESPONSE, _events(lambda e: e[:2] + e[3:])),
    "an event twice": (Check.RECEIPT_RESPONSE, _events(lambda e: e[:3] + e[2:])),
    "two events in another order": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:2], e[3], e[2], *e[4:]])),
    "[DONE] dropped": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:-2], e[-1]])),
    "[DONE] early": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:3], e[-2], *e[3:]])),
    "the receipt dropped": (Check.STREAM_TRUNCATED, _events(lambda e: e[:-1])),
    "cut at the end of an event": (Check.STREAM_TRUNCATED, _events(lambda e: e[:3])),
    "cut inside an event": (Check.STREAM_TRUNCATED, lambda body: body[:300]),
    "cut inside the receipt": (Check.STREAM_TRUNCATED, lambda body: body[:-9]),
    "nothing at all": (Check.STREAM_TRUNCATED, lambda _: b""),
    "the receipt twice": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e, e[-1]])),
    "an event after the receipt": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e, e[1]])),
    "a changed receipt": (
        Check.RECEIPT_SIGNATURE,
        lambda body: _flip(body.index(COMMENT) + len(COMMENT) + 200)(body),
    ),
}


@ASK
@pytest.mark.parametrize("what", LIVE_STREAMED)
def test_live_streamed(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], what: str) -> None:
    """Order, number and end of a stream's events."""
    check, change = LIVE_STREAMED[what]
    meddler.edit = _body(change)
    assert refused(ask, rig, True) is check
    assert len(meddler.seen) == 1, "a refusal is not retried"


def read_blocking(rig: Rig) -> None:
    client: Any
    with OpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
        for _ in client.chat.completions.create(stream=True, **ASKED, **USED):
            pass


def read_async(rig: Rig) -> None:
    async def work() -> None:
        client: Any
        async with AsyncOpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
            async for _ in await client.chat.completions.create(stream=True, **ASKED, **USED):
                pass

    asyncio.run(work())


@pytest.mark.parametrize("read", [read_blocking, read_async], ids=["blocking", "async"])
@pytest.mark.parametrize("places", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_live_any_byte_of_a_stream(
    rig: Rig, meddler: Meddler, read: Callable[[Rig], None], places: int
) -> None:
    """OpenAI's client never gets to complain first: what it could not read is held back until the receipt refuses it."""
    read(rig)
    length = len(meddler.seen[0][1])
    for at in range(0, length, max(1, length // places)):
        meddler.edit = _body(_flip(at, 1 << at % 8))
        assert refused(read, rig) in {*RECEIPT_CHECKS, Check.RECEIPT_RESPONSE, Check.STREAM_TRUNCATED}, at


#: What takes more than one exchange, and the check that each test below expects.
SCENES = {
    "the request changed on its way to the enclave": Check.RECEIPT_REQUEST,
    "the answer to an identical request before": Check.RECEIPT_REQUEST,
    "an answer of the boot before": Check.RECEIPT_SIGNATURE,
}


@ASK
@STREAMED
def test_live_changed_request(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool
) -> None:
    """An answer to another prompt than the one sent is refused, although the enclave itself gave it."""
    meddler.ask = lambda body: body.replace(b"hello", b"HELLO")
    assert refused(ask, rig, streamed) is SCENES["the request changed on its way to the enclave"]


@ASK
@STREAMED
def test_live_replay(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool) -> None:
    """The answer and receipt of a request do not serve for the next, identical one."""
    ask(rig, streamed)
    headers, body = meddler.seen[0]
    name = NONCE_HEADER.lower().encode()
    meddler.edit = lambda status, now, _: (status, {**headers, name: now[name]}, body)
    assert refused(ask, rig, streamed) is SCENES["the answer to an identical request before"]


@ASK
@STREAMED
def test_live_receipt_of_another_enclave(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool
) -> None:
    """After a restart with new keys, an answer of the old boot is refused."""
    ask(rig, streamed)
    headers, body = meddler.seen[0]
    name = NONCE_HEADER.lower().encode()
    rig.gateway.restart()
    meddler.edit = lambda status, now, _: (status, {**headers, name: now[name]}, body)
    assert refused(ask, rig, streamed) is SCENES["an answer of the boot before"]
