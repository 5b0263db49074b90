"""Other providers' evidence, read and judged on the terms of simulated vendors."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import AttestationError
from attestation.roots import Roots
from client_sdk.evidence_policy import RAW
from client_sdk.foreign.document import Foreign, Seen
from client_sdk.foreign.formats import recognise
from client_sdk.foreign.judge import judge_foreign
from client_sdk.judge import Judged, Terms
from client_sdk.present import State
from tests.client_sdk.evidence_files import NOW, amazon, amd, intel, nvidia
from tests.client_sdk.foreign_servers import SERVER, dstack, nitriding, ratls, tinfoil_v2, tinfoil_v3

NONCE = bytes(range(32))
OTHER = bytes(32)[:-1] + b"\1"
TINFOIL = "/.well-known/tinfoil-attestation"
DSTACK = "/v1/attestation/report"
NITRIDING = "/enclave/attestation"


@cache
def roots() -> Roots:
    """The simulated vendors'."""
    return nvidia().trust(Roots(intel=(intel().root,), amd=(amd().root,), aws=(amazon().root,)))


@cache
def given_collateral() -> Collateral:
    """Theirs, for every machine."""
    return Collateral(
        intel=intel().collateral(NOW), amd=amd().collateral(NOW), nvidia=nvidia().collateral(NOW)
    )


def terms(now: datetime = NOW, trusted: Roots | None = None, **tables: Any) -> Terms:
    return Terms(
        now=now,
        policy=replace(RAW, roots=trusted or roots(), **tables),
        policy_given=bool(tables),
        foreign=(),
    )


def judge(
    machine: Foreign, nonce: bytes | None = None, certificate: bytes | None = None, **changes: Any
) -> Judged:
    seen = Seen(nonce=nonce, certificate=certificate)
    return judge_foreign(
        changes.pop("terms", terms()), machine, changes.pop("collateral", given_collateral()), seen
    )


def one(data: bytes | dict[str, Any]) -> Foreign:
    (machine,) = recognise(data if isinstance(data, bytes) else json.dumps(data).encode())
    return machine


def state(judged: Judged, title: str) -> State:
    return next(line.state for line in judged.lines if line.title == title)


def refused(judged: Judged, check: Check) -> AttestationError:
    """Refused by this check, and nothing after it has passed."""
    assert judged.error is not None
    assert judged.error.check is check, judged.error
    states = [line.state for line in judged.lines]
    assert State.REFUSED in states
    assert State.PASSED not in states[states.index(State.REFUSED) :]
    return judged.error


def accepted(judged: Judged) -> Judged:
    assert judged.error is None, judged.error
    return judged


@cache
def documents() -> list[bytes]:
    """One of each kind, those in JSON first."""
    return [
        tinfoil_v2(),
        tinfoil_v3(NONCE),
        json.dumps(dstack(NONCE, SERVER)).encode(),
        nitriding(NONCE[:20]),
        ratls("tcg").der,
        ratls("dstack").der,
    ]
