"""Other providers' evidence: served by real servers, made from simulated machines and from real vendors' evidence, and
altered in every way that its format can tell.
"""

from __future__ import annotations

import gzip
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from attestation.evidence import TdxEvidence
from attestation.roots import Roots
from client_sdk.evidence_policy import RAW
from client_sdk.foreign.document import Foreign, Format, Seen
from client_sdk.foreign.fetch import Provider, ask
from client_sdk.foreign.formats import MAX_REPORT_BYTES, recognise
from client_sdk.foreign.judge import BOOT, BOUND, CHANNEL, FRESH, judge_foreign
from client_sdk.foreign.ratls import DSTACK_VERSIONED
from client_sdk.foreign.tinfoil import TDX_QUOTE
from client_sdk.judge import Judged, Terms
from client_sdk.present import State
from tests.client_sdk.evidence_files import NOW, amazon, amd, intel, nvidia
from tests.client_sdk.foreign_servers import (
    ADDRESS,
    COMPOSE,
    HPKE,
    SERVER,
    dstack,
    extension,
    gpu_items,
    identity,
    nitriding,
    ratls,
    serving,
    tinfoil_v2,
    tinfoil_v3,
    wrap_v2,
)

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


# Alterations ───────────────────────────────────────────────────────────────────────────────────────────────


def set_nonce(document: dict[str, Any]) -> None:
    document["challenge"]["nonce"] = OTHER.hex()


def swap_section(document: dict[str, Any]) -> None:
    section = json.loads(b64decode(document["crypto_material"]))
    section["items"][0]["data"] = "00" * 32
    document["crypto_material"] = b64encode(json.dumps(section).encode()).decode()


def drop_gpu(document: dict[str, Any]) -> None:
    section = json.loads(b64decode(document["device_evidence"]))
    del section["items"][0]
    document["device_evidence"] = b64encode(json.dumps(section).encode()).decode()


def splice_report(document: dict[str, Any]) -> None:
    other = json.loads(tinfoil_v3(OTHER))
    document["cpu_evidence"] = other["cpu_evidence"]


@pytest.mark.parametrize("change", [set_nonce, swap_section, drop_gpu, splice_report])
def test_a_version_3_document_put_together_from_parts_is_refused(
    change: Callable[[dict[str, Any]], None],
) -> None:
    """Nonce, keys, devices and report belong together."""
    refused(judge(one(tinfoil_v3(NONCE, change=change)), NONCE), Check.FOREIGN_BINDING)


def test_gpus_of_another_exchange_are_refused_though_the_report_commits_to_them() -> None:
    """Each GPU has to have answered for this nonce itself."""
    refused(judge(one(tinfoil_v3(NONCE, gpu_nonce=OTHER)), NONCE), Check.GPU_NONCE)

    def relay(report: dict[str, Any]) -> None:
        payload = json.loads(report["nvidia_payload"])
        report["nvidia_payload"] = {**payload, "evidence_list": gpu_items(OTHER)}

    refused(judge(one(dstack(NONCE, change=relay)), NONCE), Check.GPU_NONCE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tinfoil_v3(NONCE),
        lambda: json.dumps(dstack(NONCE)).encode(),
        lambda: nitriding(NONCE[:20]),
        lambda: nitriding(None),
    ],
    ids=["tinfoil v3", "dstack", "nitriding", "nitriding without"],
)
def test_evidence_for_another_nonce_is_refused(make: Callable[[], bytes]) -> None:
    """Kept from an earlier time, or made for somebody else."""
    refused(judge(one(make()), OTHER), Check.FOREIGN_NONCE)


@pytest.mark.parametrize(
    "change",
    [
        {"signing_address": "0x" + "11" * 20},
        {"request_nonce": OTHER.hex()},
        {"tls_cert_fingerprint": "22" * 32},
        {"tls_cert_fingerprint": None},
        {"intel_quote": ...},
        {"info": {"tcb_info": json.dumps({"app_compose": COMPOSE + " "})}},
    ],
    ids=["address", "nonce", "TLS key", "TLS key left out", "another quote", "compose file"],
)
def test_an_altered_report_is_refused(change: dict[str, Any]) -> None:
    """Address, nonce, TLS key, quote and compose file are what the hardware signed or measured."""
    if "intel_quote" in change:
        change = {"intel_quote": dstack(OTHER)["intel_quote"]}
    error = refused(judge(one(dstack(NONCE, SERVER, lambda r: r.update(change)))), Check.FOREIGN_BINDING)
    assert isinstance(error, VerificationError)


def test_gpu_evidence_that_cannot_be_read_is_refused_after_the_cpu_has_passed() -> None:
    """The report is known, what stands in for a GPU's report is not."""

    def junk(report: dict[str, Any]) -> None:
        report["nvidia_payload"] = {
            "arch": "HOPPER",
            "evidence_list": [{"evidence": "AA==", "certificate": ""}],
        }

    judged = judge(one(dstack(NONCE, change=junk)))
    refused(judged, Check.GPU_FORMAT)
    assert state(judged, BOUND) is State.PASSED


def test_an_event_log_that_leads_elsewhere_is_refused() -> None:
    """One event left out: RTMR3 is another."""

    def shorten(report: dict[str, Any]) -> None:
        report["event_log"] = json.loads(report["event_log"])[:-1]

    refused(judge(one(dstack(NONCE, change=shorten))), Check.EVENTLOG_REPLAY)


def test_a_version_3_document_with_a_tdx_quote_is_judged_alike() -> None:
    """The same sections, another CPU."""

    def change(document: dict[str, Any]) -> None:
        quote = intel().quote(bytes.fromhex(document["challenge"]["report_data"]))
        evidence = {"format": TDX_QUOTE, "report_base64": b64encode(quote).decode()}
        document["cpu_evidence"].update(evidence)

    machine = one(tinfoil_v3(NONCE, change=change))
    assert isinstance(machine.cpu, TdxEvidence)
    assert state(accepted(judge(machine, NONCE, SERVER.der)), CHANNEL) is State.PASSED
    refused(judge(machine, NONCE, identity().der), Check.FOREIGN_TLS_KEY)


def test_report_data_of_zeros_commits_to_nothing() -> None:
    """It would name a TLS key of which nobody knows the digest's preimage; refused by name all the same."""
    refused(judge(one(wrap_v2(amd().report(bytes(64)), tdx=False))), Check.FOREIGN_BINDING)


@pytest.mark.parametrize("kind", ["intel", "gramine", "tcg", "dstack"])
def test_a_quote_about_another_key_is_refused(kind: str) -> None:
    """A certificate that somebody made around a quote that is not about its key."""
    signer = ratls(kind, committed=identity().key)  # type: ignore[arg-type]  # `identity` makes P-256 keys
    refused(judge(one(signer.der)), Check.FOREIGN_BINDING)


@pytest.mark.parametrize(("inside", "after"), [(b"\xa0", b""), (b"", b"\0")], ids=["claims", "evidence"])
def test_nothing_follows_a_cbor_value(inside: bytes, after: bytes) -> None:
    """A second value behind the claims, or bytes behind the evidence, would be read by some and not by others."""
    with pytest.raises(MalformedError, match="1 bytes after a CBOR value"):
        recognise(ratls("tcg", inside=inside, after=after).der)


# Bytes that are no document ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (lambda r: gzip.compress(bytes(MAX_REPORT_BYTES + 1)), "unpacks to more"),
        (lambda r: gzip.compress(bytes(200_000_000)), "unpacks to more"),
        (lambda r: gzip.compress(r) + b"\0", "after its gzip member"),
        (lambda r: gzip.compress(r) * 2, "after its gzip member"),
        (lambda r: gzip.compress(r)[:-1], "cut short"),
        (zlib.compress, "not gzip"),
    ],
    ids=["too large", "bomb", "trailing byte", "second member", "cut", "zlib"],
)
def test_a_body_is_one_gzip_member_of_bounded_size(pack: Callable[[bytes], bytes], said: str) -> None:
    """And nothing follows it."""
    with pytest.raises(MalformedError, match=said) as caught:
        recognise(tinfoil_v2(pack=pack))
    assert caught.value.check is Check.FOREIGN_FORMAT


def versioned(kind: bytes) -> bytes:
    """How dstack's attestation of version 1 begins, in MessagePack."""
    return b"\x83\xa7version\x01\xa8platform\x82\xa4kind" + kind + b"\xa4data\x80\xa5stack\x80"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"format":"https://tinfoil.sh/predicate/sev-snp-guest/v1","body":""}', "sev-snp-guest/v1"),
        (b'{"attestation_type":"chutes","nonce":"00"}', "chutes"),
        (b'{"api_version":"aci/1"}', "aci/1"),
        (b"{}", "no format"),
        (b'{"format":"https://tinfoil.sh/predicate/tdx-guest/v2","body":"","more":1}', "members"),
        (b'{"all_attestations":[1]}', "object"),
        (identity().der, "without a quote"),
        (b"", "evidence nitro"),
        (versioned(b"\xa7sev-snp"), "versioned attestation of an AMD SEV-SNP machine is not judged"),
        (versioned(b"\xa4next"), "versioned attestation is not judged"),
        (
            json.dumps({"attestation": versioned(b"\xa3tdx").hex()}).encode(),
            "of an Intel TDX machine is not judged",
        ),
        (b'{"attestation": "no hex"}', "versioned attestation is not judged"),
        (b'{"quote": "", "event_log": "[]", "report_data": "", "vm_config": "{}"}', "guest agent"),
        (
            identity([extension(DSTACK_VERSIONED, b"\4\x20" + versioned(b"\xa7sev-snp"))]).der,
            "AMD SEV-SNP machine .1.3",
        ),
        (
            json.dumps({"intel_quote": amd().report(bytes(64)).hex()}).encode(),
            "dstack report of an AMD SEV-SNP",
        ),
        (amd().report(bytes(64)), "SEV-SNP report without a document"),
        (b64encode(intel().quote(bytes(64))), "TDX quote without a document"),
        (wrap_v2(b"\1" + bytes(1183), tdx=False), "version 1, of firmware before"),
    ],
)
def test_what_is_known_by_name_alone_is_refused_by_its_name(data: bytes, said: str) -> None:
    """Formats of others that are not judged, and bytes of none."""
    with pytest.raises(MalformedError, match=said) as caught:
        recognise(data or b64encode(amazon().document(NOW)))
    assert caught.value.check in {Check.FOREIGN_FORMAT, Check.SNP_REPORT}


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_bytes_are_read_or_malformed(data: st.DataObject) -> None:
    """Random bytes, and documents with bytes exchanged, cut out or repeated."""
    raw = data.draw(st.sampled_from(documents()) | st.binary(max_size=200))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 8))
        raw = raw[:at] + data.draw(st.binary(max_size=8)) + raw[at + cut :]
    with suppress(MalformedError):
        assert recognise(raw)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_value_in_any_member_is_read_or_malformed(data: st.DataObject) -> None:
    """JSON of other types where texts, lists and objects are expected, also inside the sections."""
    document = json.loads(data.draw(st.sampled_from(documents()[:3])))
    target: Any = document
    while True:
        name = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        inner = target[name]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        target = inner
    target[name] = data.draw(_JSON | _JSON.map(lambda v: b64encode(json.dumps(v).encode()).decode()))
    with suppress(MalformedError):
        assert recognise(json.dumps(document).encode())


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
