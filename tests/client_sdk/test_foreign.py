"""Other providers' evidence: served by real servers, made from simulated machines, and what a file alone leaves open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import MalformedError, PolicyError, UnavailableError
from client_sdk.evidence_policy import RAW
from client_sdk.foreign.document import Format
from client_sdk.foreign.fetch import Provider, ask
from client_sdk.foreign.formats import recognise
from client_sdk.foreign.judge import BOOT, BOUND, CHANNEL, FRESH, judge_foreign
from client_sdk.present import State
from tests.client_sdk.foreign_judged import (
    DSTACK,
    NITRIDING,
    NONCE,
    TINFOIL,
    accepted,
    given_collateral,
    judge,
    one,
    refused,
    state,
    terms,
)
from tests.client_sdk.foreign_servers import (
    ADDRESS,
    HPKE,
    SERVER,
    dstack,
    identity,
    nitriding,
    ratls,
    serving,
    tinfoil_v2,
    tinfoil_v3,
)

# Every format, from a real server ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "route", "expected"),
    [
        (TINFOIL, lambda _: tinfoil_v2(), Format.TINFOIL_V2),
        (TINFOIL, lambda _: tinfoil_v2(tdx=True), Format.TINFOIL_V2),
        (TINFOIL, tinfoil_v3, Format.TINFOIL_V3),
        (DSTACK, lambda n: json.dumps(dstack(n, SERVER)).encode(), Format.DSTACK),
        (NITRIDING, nitriding, Format.NITRIDING),
    ],
    ids=["tinfoil v2 SNP", "tinfoil v2 TDX", "tinfoil v3", "dstack", "nitriding"],
)
def test_a_served_document_is_found_and_accepted(
    tmp_path: Path, path: str, route: Any, expected: Format
) -> None:
    """The format is recognised, the nonce was ours, and the connection ended at the attested key."""
    with serving(tmp_path, {path: route}) as server:
        published = ask(server.url)
    (machine,) = published.machines
    judged = accepted(judge_foreign(terms(), machine, given_collateral(), published.seen))
    assert machine.format is expected
    assert state(judged, CHANNEL) is State.PASSED
    assert state(judged, FRESH) is (State.NOT_REACHED if expected is Format.TINFOIL_V2 else State.PASSED)
    assert machine.uncovered
    assert judged.claims["not_covered"] == list(machine.uncovered)


@pytest.mark.parametrize("kind", ["intel", "gramine", "tcg", "dstack"])
def test_a_certificate_with_a_quote_is_accepted_at_the_end_of_its_own_connection(
    tmp_path: Path, kind: str
) -> None:
    """All places of a quote, and the key of the handshake is the one that it is about."""
    with serving(tmp_path, {}, ratls(kind)) as server:
        published = ask(server.url)
    assert published.provider is Provider.RA_TLS
    judged = accepted(judge_foreign(terms(), published.machines[0], given_collateral(), published.seen))
    assert state(judged, CHANNEL) is State.PASSED
    assert state(judged, FRESH) is State.NOT_REACHED


def test_formats_are_asked_for_in_one_order_and_each_with_a_fresh_nonce(tmp_path: Path) -> None:
    """Our own path first, then Tinfoil's, dstack's and nitriding's; a page that is something else is passed by."""
    routes: dict[str, Any] = {TINFOIL: b"<html>hello</html>", NITRIDING: nitriding}
    with serving(tmp_path, routes) as server:
        first, second = ask(server.url), ask(server.url)
    paths = [asked.partition("?")[0] for asked in server.asked[:4]]
    assert paths == ["/.well-known/attestation", TINFOIL, DSTACK, NITRIDING]
    assert first.seen.nonce != second.seen.nonce
    assert len(first.seen.nonce or b"") == 20


def test_it_is_asked_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As our own enclaves: the environment's proxies are for what vendors publish, and not for who is verified."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(tmp_path, {TINFOIL: lambda _: tinfoil_v2()}) as provider:
        assert ask(provider.url).provider is Provider.TINFOIL


def test_a_path_in_the_address_stands_in_place_of_the_formats_own(tmp_path: Path) -> None:
    """And its query is kept, as for a gateway that wants to know which model."""
    with serving(tmp_path, {"/here": lambda n: json.dumps(dstack(n)).encode()}) as server:
        published = ask(f"{server.url}/here?model=x", Provider.DSTACK)
    assert server.asked[0].startswith("/here?model=x&")
    assert published.machines[0].nonce == published.seen.nonce


def test_where_nothing_is_published_the_outcome_is_left_open(tmp_path: Path) -> None:
    """404 everywhere and a certificate without a quote; and an address where nobody answers."""
    with serving(tmp_path, {}) as server, pytest.raises(UnavailableError, match="none in the cert") as caught:
        ask(server.url)
    assert caught.value.check is Check.FOREIGN_FETCH
    with pytest.raises(UnavailableError) as caught:
        ask(server.url, Provider.TINFOIL)  # it has gone
    assert caught.value.check is Check.FOREIGN_FETCH
    assert "can be reached from here" in caught.value.advice


def test_the_wrong_certificate_on_the_connection_is_refused(tmp_path: Path) -> None:
    """Honest evidence behind something else that ends TLS, for each format that names a key."""
    stranger = identity()
    routes: dict[str, Any] = {
        TINFOIL: tinfoil_v3,
        DSTACK: lambda n: json.dumps(dstack(n, SERVER)).encode(),
        NITRIDING: nitriding,
    }
    with serving(tmp_path, routes, stranger) as server:
        for provider in (Provider.TINFOIL, Provider.DSTACK, Provider.NITRIDING):
            published = ask(server.url, provider)
            judged = judge_foreign(terms(), published.machines[0], given_collateral(), published.seen)
            refused(judged, Check.FOREIGN_TLS_KEY)


# What a file leaves open, policies, and several machines ───────────────────────────────────────────────────


def test_a_file_leaves_nonce_and_connection_open() -> None:
    """Neither is shown as passed: nobody knows what was asked, and there was no connection."""
    judged = accepted(judge(one(dstack(NONCE, SERVER))))
    assert [state(judged, title) for title in (FRESH, CHANNEL)] == [State.NOT_REACHED] * 2
    assert [state(judged, title) for title in (BOUND, BOOT)] == [State.PASSED] * 2
    assert judged.claims["keys"] == {"signing_address_ecdsa": ADDRESS}
    assert judged.claims["event_log"].dstack.app_id == ADDRESS


def test_a_document_without_gpus_says_so_and_a_policy_that_wants_them_refuses() -> None:
    """No GPU link has passed, and the default policy wants at least one GPU."""
    machine = one(tinfoil_v2())
    judged = accepted(judge(machine))
    assert [line.state for line in judged.lines if line.title.startswith("GPUs")] == [State.NOT_REACHED]
    assert judged.claims["keys"] == {"hpke_x25519": HPKE}
    assert any(line.startswith("GPUs:") for line in machine.uncovered)
    error = judge(machine, terms=terms(snp=RAW.snp)).error
    assert isinstance(error, PolicyError)
    assert Check.POLICY_GPU in {violation.check for violation in error.violations}


def test_a_policy_without_a_table_for_the_platform_refuses() -> None:
    """As for our own evidence."""
    error = judge(one(dstack(NONCE)), terms=terms(tdx=None)).error
    assert isinstance(error, PolicyError)
    assert error.check is Check.POLICY_PLATFORM


def test_gpu_collateral_that_is_missing_is_never_passed() -> None:
    """Without manifests and OCSP answers the default policy refuses, and the links stay open."""
    judged = judge(one(dstack(NONCE)), collateral=replace(given_collateral(), nvidia=None))
    assert isinstance(judged.error, PolicyError)
    assert state(judged, "GPUs: measures what NVIDIA published") is State.NOT_REACHED


def test_missing_collateral_leaves_the_question_open() -> None:
    """No verdict without Intel's or AMD's word."""
    for machine in (one(dstack(NONCE)), one(tinfoil_v2())):
        error = judge(machine, collateral=Collateral()).error
        assert isinstance(error, UnavailableError)
        assert error.check is Check.COLLATERAL_MISSING


def test_every_machine_behind_a_gateway_is_judged_once() -> None:
    """Two models' machines and the gateway; the report that is repeated in its own list counts once."""
    first, second = dstack(NONCE, SERVER), dstack(NONCE, address=bytes(20)[:-1] + b"\7")
    report = {"gateway_attestation": first, "model_attestations": [second, second]}
    machines = recognise(json.dumps(report).encode())
    assert [machine.tls is None for machine in machines] == [False, True]
    assert all(accepted(judge(machine, NONCE)) for machine in machines)
    assert len(recognise(json.dumps({**first, "all_attestations": [first]}).encode())) == 1
    with pytest.raises(MalformedError, match="limit"):
        recognise(json.dumps({"all_attestations": [first] * 18}).encode())
