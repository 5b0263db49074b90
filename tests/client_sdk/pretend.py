"""An enclave without sockets: its keys, evidence documents and signed answers, for tests of the parts without I/O."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation._b64 import b64url_encode
from attestation.binding import PURPOSE, Engine, Image, Keys, Model, Statement, report_data
from attestation.collateral import Collateral
from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.nvidia.policy import GpuPolicy
from attestation.policy import Policy, StatementPolicy
from attestation.receipt import (
    COMMENT,
    NONCE_HEADER,
    RECEIPT_HEADER,
    Outcome,
    Receipt,
    Request,
    Response,
    RunningDigest,
    ServedModel,
)
from attestation.roots import Roots
from attestation.sealed import SealingKeys
from attestation.simulator.tdx import DEFAULT_TD, SimulatedTdx
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from client_sdk.exchange import Exchange
from client_sdk.session import Session

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIMULATOR = SimulatedTdx.create()
PATH = "/v1/chat/completions"
PROMPT = b'{"model":"m","messages":[{"role":"user","content":"the secret prompt"}]}'
ANSWER = (
    b'{"id":"c-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)
EVENTS = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hel"}}]}\n\n',
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


@dataclass
class PretendEnclave:
    """One boot: keys of its own and a statement about them."""

    receipt_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealing_keys: SealingKeys = field(default_factory=SealingKeys.generate)
    tls_spki: bytes = bytes(32)
    not_after: datetime = NOW + timedelta(days=7)

    @property
    def statement(self) -> bytes:
        return Statement(
            v=1,
            purpose=PURPOSE,
            keys=Keys(
                **{
                    **{
                        spec.name: bytes(spec.metadata["size"])
                        for spec in dataclasses.fields(Keys)
                        if spec.default is dataclasses.MISSING
                    },
                    "receipt_ed25519": self.receipt_key.public_key().public_bytes_raw(),
                    "tls_spki_sha256": self.tls_spki,
                    "sealing_x_wing": self.sealing_keys.public_x_wing,
                    "sealing_x25519": self.sealing_keys.public_x25519,
                }
            ),
            not_before=int((NOW - timedelta(hours=1)).timestamp()),
            not_after=int(self.not_after.timestamp()),
            model=Model(names=("m",), digest=b"\x07" * 32),
            engine=Engine(name="vllm", version="0", flags=()),
            config=b"\x08" * 32,
            image=Image(build="b", source="s"),
        ).to_bytes()

    def evidence(self, nonce: bytes, now: datetime = NOW) -> Evidence:
        return Evidence(
            statement=self.statement,
            cpu=TdxEvidence(SIMULATOR.quote(report_data(nonce, self.statement))),
            collateral=Collateral(intel=SIMULATOR.collateral(now)),
        )

    def document(self, nonce: bytes, now: datetime = NOW) -> bytes:
        return dump_evidence(self.evidence(nonce, now))

    def verified(self, now: datetime = NOW) -> Session:
        """A session that has accepted this enclave."""
        session = Session(POLICY)
        nonce = session.begin()
        session.accept(self.document(nonce), b64url_encode(nonce), now)
        return session

    def exchange(
        self, body: bytes = PROMPT, *, nonce: bytes = b"\x05" * 32, method: str = "POST"
    ) -> Exchange:
        """A request that a client has sent to this enclave."""
        verdict = self.verified().current(NOW)
        assert verdict is not None
        return Exchange(verdict=verdict, nonce=nonce, method=method, path=PATH, body=body)

    def receipt(
        self,
        exchange: Exchange,
        answer: bytes,
        *,
        status: int = 200,
        outcome: Outcome = Outcome.COMPLETE,
        **changes: Any,
    ) -> str:
        """What this enclave signs about `answer` to `exchange`; `changes` make it lie."""
        asked, told = RunningDigest(exchange.nonce, exchange.body), RunningDigest(exchange.nonce, answer)
        receipt = Receipt(
            id="r-1",
            counter=1,
            time=int(NOW.timestamp()),
            request=Request(
                method=exchange.method, path=exchange.path, digest=asked.digest(), length=asked.length
            ),
            response=Response(status=status, digest=told.digest(), length=told.length),
            outcome=outcome,
            model=ServedModel(name="m", digest=b"\x07" * 32),
            statement=sha256(self.statement).digest(),
        )
        return dataclasses.replace(receipt, **changes).sign(self.receipt_key)

    def headers(self, exchange: Exchange, answer: bytes, **how: Any) -> dict[str, str]:
        """The headers of a plain answer."""
        return {
            "Content-Type": "application/json",
            NONCE_HEADER: b64url_encode(exchange.nonce),
            RECEIPT_HEADER: self.receipt(exchange, answer, **how),
        }

    def comment(self, exchange: Exchange, events: bytes, **how: Any) -> bytes:
        """The end of a stream."""
        return COMMENT + self.receipt(exchange, events, **how).encode() + b"\n\n"


def stream_headers(exchange: Exchange) -> dict[str, str]:
    return {
        "Content-Type": "text/event-stream; charset=utf-8",
        NONCE_HEADER: b64url_encode(exchange.nonce),
    }


POLICY = Policy(
    roots=Roots(intel=(SIMULATOR.root,)),
    tdx=TdxPolicy(
        measurements=(TdxMeasurement(mrtd=DEFAULT_TD.mrtd, rtmr0=DEFAULT_TD.rtmr0),),
    ),
    gpu=GpuPolicy(required=False),
    statement=StatementPolicy(
        model_digests=frozenset({b"\x07" * 32}), config_digests=frozenset({b"\x08" * 32})
    ),
)
