"""A simulated Azure VM: every defect is refused by the check that is for it, and policies say why they refuse."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.measure import EventLogPolicy
from attestation.roots import VENDOR
from attestation.simulator.snp import MEASUREMENT
from attestation.simulator.vtpm import (
    PCRS,
    QuoteFields,
    SimulatedVtpm,
    VtpmDefect,
    jwk,
    make_hcl_report,
    make_quote,
)
from attestation.snp import SnpPolicy
from attestation.tdx import TdxPolicy
from attestation.vtpm import (
    PcrPolicy,
    VtpmClaims,
    VtpmPolicy,
    parse_evidence,
    parse_hcl_report,
    parse_quote,
    verify,
)
from tests.attestation.measure.logs import entry, header

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NONCE = b"n" * 32
VM = SimulatedVtpm()
PCR4 = PcrPolicy(index=4, values=frozenset({PCRS[4]}))
HARDWARE = SnpPolicy(measurements=frozenset({MEASUREMENT}))
POLICY = VtpmPolicy(snp=HARDWARE, pcrs=(PCR4,))

DEFECTS = {
    VtpmDefect.RUNTIME_DATA_ALTERED: Check.VTPM_RUNTIME_DATA,
    VtpmDefect.REPORT_DATA_LONGER: Check.VTPM_RUNTIME_DATA,
    VtpmDefect.KEY_REPLACED: Check.VTPM_RUNTIME_DATA,
    VtpmDefect.REPORT_TYPE: Check.VTPM_RUNTIME_DATA,
    VtpmDefect.OTHER_KEY: Check.VTPM_SIGNATURE,
    VtpmDefect.QUOTE_ALTERED: Check.VTPM_SIGNATURE,
    VtpmDefect.PCR_ALTERED: Check.VTPM_PCR_DIGEST,
    VtpmDefect.NO_PCR: Check.VTPM_PCR_DIGEST,
}


def _claims(defect: VtpmDefect | None = None, nonce: bytes = NONCE, **fields: Any) -> VtpmClaims:
    evidence = VM.evidence(NONCE, defect, **fields)
    return verify(evidence, VM.collateral(NOW), VM.roots, NOW, nonce=nonce)


def test_sound_evidence_is_accepted() -> None:
    """Hardware, runtime data, key, nonce and PCRs agree, and a policy that names them has no objection."""
    claims = _claims()
    assert claims.pcrs[4] == PCRS[4]
    assert claims.root == VM.machine.root
    assert POLICY.check(claims, NOW) == []


def test_every_defect_is_listed() -> None:
    """No defect of the simulator goes without its expected check."""
    assert set(DEFECTS) == set(VtpmDefect)


@pytest.mark.parametrize(("defect", "check"), DEFECTS.items(), ids=[d.name for d in DEFECTS])
def test_a_defect_fails_its_check(defect: VtpmDefect, check: Check) -> None:
    """Each break in the chain from hardware to quote is refused under the name of its check."""
    with pytest.raises(VerificationError) as failed:
        _claims(defect)
    assert failed.value.check is check


@pytest.mark.parametrize("nonce", [b"m" * 32, NONCE[:-1], NONCE + b"\0", b""])
def test_another_nonce_is_refused(nonce: bytes) -> None:
    """The whole nonce must be the one asked for, and there must be one."""
    with pytest.raises(VerificationError) as failed:
        _claims(nonce=nonce)
    assert failed.value.check is Check.VTPM_NONCE


def test_no_nonce_at_all_is_refused() -> None:
    """A quote without a nonce is nobody's answer, even to a caller who sent none."""
    with pytest.raises(VerificationError) as failed:
        verify(VM.evidence(b""), VM.collateral(NOW), VM.roots, NOW, nonce=b"")
    assert failed.value.check is Check.VTPM_NONCE


def test_no_vendor_policy_trusts_the_simulator() -> None:
    """Simulated hardware is refused under the default roots."""
    with pytest.raises(VerificationError) as failed:
        verify(VM.evidence(NONCE), VM.collateral(NOW), VENDOR, NOW, nonce=NONCE)
    assert failed.value.check is Check.SNP_ROOT


# The event log


def _log(measured: bytes) -> bytes:
    return header(0, [(11, 32)]) + entry(4, 1, measured, measured, [11])


def _booted(measured: bytes) -> tuple[bytes, ...]:
    pcr4 = sha256(bytes(32) + sha256(measured).digest()).digest()
    return tuple(pcr4 if i == 4 else b"\xff" * 32 if 17 <= i < 23 else bytes(32) for i in range(24))


def test_an_event_log_must_lead_to_the_quoted_pcrs() -> None:
    """It becomes claims when it does, and is refused when it does not."""
    claims = _claims(pcrs=_booted(b"kernel"), event_log=_log(b"kernel"))
    assert claims.event_log is not None
    assert claims.event_log.events[0].data == b"kernel"
    with pytest.raises(VerificationError, match="PCR4 is the first") as failed:
        _claims(pcrs=_booted(b"kernel"), event_log=_log(b"other"))
    assert failed.value.check is Check.EVENTLOG_REPLAY


def test_pcrs_that_a_system_extends_may_be_left_out() -> None:
    """By name; nothing is claimed of them."""
    pcrs = list(_booted(b"kernel"))
    pcrs[11] = b"\1" * 32
    evidence = VM.evidence(NONCE, pcrs=tuple(pcrs), event_log=_log(b"kernel"))
    with pytest.raises(VerificationError, match="PCR11"):
        verify(evidence, VM.collateral(NOW), VM.roots, NOW, nonce=NONCE)
    claims = verify(evidence, VM.collateral(NOW), VM.roots, NOW, nonce=NONCE, leave_out={11})
    assert claims.event_log is not None
    assert claims.event_log.left_out == ("PCR11",)


def test_what_linux_measures_by_itself_is_left_out() -> None:
    """IMA extends PCR 10 in every boot; a log that speaks of that register has to lead to it."""
    pcrs = list(_booted(b"kernel"))
    pcrs[10] = b"\1" * 32
    claims = _claims(pcrs=tuple(pcrs), event_log=_log(b"kernel"))
    assert claims.event_log is not None
    assert claims.event_log.left_out == ("PCR10",)
    with pytest.raises(VerificationError, match="PCR10"):
        _claims(pcrs=tuple(pcrs), event_log=_log(b"kernel") + entry(10, 1, b"x", b"x", [11]))


# What the bytes may say


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": b"\xffTCH\x80\x18"},
        {"magic": b"\xffTCG\x80\x17"},  # a certified key is no quote
        {"safe": 2},
        {"count": 2},
        {"bank": 0x0C},
        {"size": 4},
        {"signer": bytes(2000)},
    ],
    ids=str,
)
def test_another_attestation_is_malformed(fields: dict[str, Any]) -> None:
    """Only a quote over one selection of SHA-256 PCRs is read."""
    with pytest.raises(MalformedError) as failed:
        parse_quote(make_quote(NONCE, PCRS, replace(QuoteFields(), **fields)))
    assert failed.value.check is Check.VTPM_FORMAT


def test_anything_after_a_quote_is_malformed() -> None:
    """Not even zeros may follow."""
    with pytest.raises(MalformedError):
        parse_quote(make_quote(NONCE, PCRS) + b"\0")


_KEY = jwk(VM.key.public_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": ...},
        {"keys": {}},
        {"keys": []},
        {"keys": [1]},
        {"keys": [_KEY, _KEY]},
        {"keys": [_KEY | {"kty": "EC"}]},
        {"keys": [_KEY | {"e": "Aw"}]},
        {"keys": [_KEY | {"n": "AQAB"}]},
        {"keys": [_KEY | {"n": None}]},
        {"keys": [_KEY | {"n": _KEY["n"] + "="}]},
        {"keys": [_KEY | {"n": _KEY["n"][:-1] + "A"}]},  # even
        {"vm-configuration": ...},
        {"vm-configuration": {"secure-boot": "true"}},
        {"vm-configuration": {"vmUniqueId": 1}},
        {"user-data": "xyz"},
        {"user-data": None},
        {"padding": "x" * 8192},
    ],
    ids=lambda c: str(c)[:40],
)
def test_runtime_data_out_of_shape_is_malformed(changes: dict[str, Any]) -> None:
    """Exactly one sound attestation key, and members of the right types."""
    with pytest.raises(MalformedError) as failed:
        parse_hcl_report(VM.hcl_report(changes))
    assert failed.value.check is Check.VTPM_FORMAT


@pytest.mark.parametrize(
    "header",
    [
        {"version": 0},
        {"version": 3},
        {"size": 0},
        {"status": 1},
        {"block": 0},
        {"format": 2},
        {"hash": 2},
        {"kind": 1},
    ],
    ids=str,
)
def test_an_hcl_header_out_of_shape_is_malformed(header: dict[str, int]) -> None:
    """Versions, sizes, status, hash and report type must be those that are understood."""
    with pytest.raises(MalformedError):
        parse_hcl_report(make_hcl_report(bytes(1184), VM.runtime_data({}), **header))


def test_anything_after_runtime_data_is_malformed() -> None:
    """Zeros fill the NV index, and nothing else may; size is limited."""
    for tail in (b"\0\1", bytes(20000)):
        with pytest.raises(MalformedError):
            parse_hcl_report(VM.hcl_report({}) + tail)


def _json(**changes: Any) -> bytes:
    quote = {"message": "00", "signature": [1, 2], "pcrs": ["00" * 32] * 24}
    fields = {"version": 1, "tpm_quote": quote, "hcl_report": "AA"} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def test_both_forms_of_json_are_read() -> None:
    """Lists of numbers, hex and base64url say the same."""
    evidence = parse_evidence(_json(vcek="PEM", td_quote="AQI", event_log=[3]))
    assert (evidence.quote, evidence.signature, evidence.hcl_report) == (b"\0", b"\1\2", b"\0")
    assert (evidence.vcek, evidence.td_quote, evidence.event_log) == (b"PEM", b"\1\2", b"\3")


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"version": "1"},
        {"tpm_quote": ...},
        {"tpm_quote": []},
        {"tpm_quote": {"message": "00"}},
        {"quote": {}},
        {"hcl_report": ...},
        {"hcl_report": "?"},
        {"hcl_report": 1},
        {"hcl_report": [256]},
        {"hcl_report": [True]},
        {"vcek": 1},
        {"vcek": "é"},
        {"tpm_quote": {"message": "0", "signature": "", "pcrs": ["00" * 32] * 24}},
        {"tpm_quote": {"message": "", "signature": None, "pcrs": ["00" * 32] * 24}},
        {"tpm_quote": {"message": "", "signature": "", "pcrs": ["00" * 32] * 23}},
        {"tpm_quote": {"message": "", "signature": "", "pcrs": ["00" * 31] * 24}},
        {"tpm_quote": {"message": "", "signature": "", "pcrs": None}},
    ],
    ids=lambda c: str(c)[:40],
)
def test_evidence_out_of_shape_is_malformed(changes: dict[str, Any]) -> None:
    """Missing, unknown and mistyped members are refused."""
    with pytest.raises(MalformedError) as failed:
        parse_evidence(_json(**changes))
    assert failed.value.check is Check.VTPM_FORMAT


@given(st.binary(max_size=300))
def test_any_bytes_are_evidence_or_malformed(data: bytes) -> None:
    """No bytes raise anything else, alone or behind a good beginning."""
    for parse, good in ((parse_evidence, b""), (parse_quote, _QUOTE[:44]), (parse_hcl_report, _HCL[:1236])):
        for edited in (data, good + data):
            with suppress(MalformedError):
                parse(edited)


_QUOTE, _HCL = make_quote(NONCE, PCRS), VM.hcl_report({})


# What a policy accepts


@pytest.mark.parametrize(
    ("changed", "fields", "check"),
    [
        ({"pcrs": ()}, {}, Check.VTPM_PCR),
        ({"pcrs": (PcrPolicy(index=4, values=frozenset({bytes(32)})),)}, {}, Check.VTPM_PCR),
        ({"pcrs": (PcrPolicy(index=4, values=frozenset()),)}, {}, Check.VTPM_PCR),
        ({"pcrs": (PcrPolicy(index=24, values=frozenset({bytes(32)})),)}, {}, Check.VTPM_PCR),
        ({"event_log": EventLogPolicy()}, {}, Check.EVENTLOG_MISSING),
        ({"snp": None}, {}, Check.POLICY_PLATFORM),
        ({"snp": None, "tdx": TdxPolicy()}, {}, Check.POLICY_PLATFORM),
        ({"snp": SnpPolicy()}, {}, Check.SNP_MEASUREMENT),
        ({}, {"vm-configuration": {"secure-boot": False, "console-enabled": False}}, Check.VTPM_SECURE_BOOT),
        ({}, {"vm-configuration": {"console-enabled": False}}, Check.VTPM_SECURE_BOOT),
        ({}, {"vm-configuration": {"secure-boot": True, "console-enabled": True}}, Check.VTPM_CONSOLE),
        ({}, {"vm-configuration": {"secure-boot": True}}, Check.VTPM_CONSOLE),
        ({}, {"user-data": "01"}, Check.VTPM_USER_DATA),
        ({"user_data": b"\2"}, {"user-data": "01"}, Check.VTPM_USER_DATA),
        ({"user_data": b"\2"}, {"user-data": ...}, Check.VTPM_USER_DATA),
    ],
)
def test_a_policy_refuses(changed: dict[str, Any], fields: dict[str, Any], check: Check) -> None:
    """Each expectation, not met, is exactly one violation under its name, with what was expected and found."""
    (violation,) = replace(POLICY, **changed).check(_claims(runtime_data=fields), NOW)
    assert violation.check is check
    assert violation.expected
    assert violation.found


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"pcrs": (), "any_pcrs": True}, {}),
        ({"allow_no_secure_boot": True, "allow_console": True}, {"vm-configuration": {}}),
        ({"any_user_data": True}, {"user-data": "01"}),
        ({"user_data": b"\1"}, {"user-data": "01"}),
        ({}, {"user-data": ...}),
    ],
)
def test_a_policy_accepts_what_it_names(changed: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each loosening has a name, and does what it says."""
    assert replace(POLICY, **changed).check(_claims(runtime_data=fields), NOW) == []


def test_an_event_log_may_stand_for_the_pcrs() -> None:
    """A policy over events needs no PCR values; what it objects to is the log's."""
    claims = _claims(pcrs=_booted(b"x"), event_log=_log(b"x"))
    policy = replace(
        POLICY, pcrs=(), event_log=EventLogPolicy(any_kernel=True, any_initrd=True, any_command_line=True)
    )
    assert [v.check for v in policy.check(claims, NOW)] == [Check.EVENTLOG_OTHER]
