"""Intel's collateral as text, and what is remembered of it between calls: content, never time or revocation."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.simulator import SimulatedTdx, TdxDefect
from attestation.simulator import tdx_collateral as intel
from attestation.simulator.pki import issue
from attestation.simulator.tdx_pki import sgx_extension
from attestation.tdx import TcbStatus, verify
from attestation.tdx.collateral import parse_qe_identity, parse_tcb_info
from attestation.tdx.pck import _parse as parse_sgx_extension
from attestation.tdx.status import converge

NOW = datetime(2026, 6, 1, tzinfo=UTC)
_MADE_BY_ISSUE = (x509.BasicConstraints, x509.KeyUsage)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    """Set the value at a path."""
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = value


@given(data=st.data())
def test_any_value_anywhere_gives_tcb_info_or_malformed(data: st.DataObject) -> None:
    """Whatever a field holds, nothing but MalformedError leaves the parsers."""
    for make, parse in ((intel.tcb_info, parse_tcb_info), (intel.qe_identity, parse_qe_identity)):
        document = make(NOW)
        put(document, data.draw(st.sampled_from(paths(document))), data.draw(JSON))
        try:
            parse(intel.encode(document))
        except MalformedError as exc:
            assert exc.check is Check.TDX_COLLATERAL_FORMAT  # noqa: PT017  # both outcomes are right


@given(text=st.text(max_size=200))
def test_any_text_is_malformed(text: str) -> None:
    """Text that is no such document is refused, lone surrogates included."""
    for parse in (parse_tcb_info, parse_qe_identity):
        with pytest.raises(MalformedError):
            parse(text)


@given(der=st.binary(max_size=300))
def test_any_der_gives_a_platform_or_one_of_three_errors(der: bytes) -> None:
    """The SGX extension's reader fails only in ways its caller turns into MalformedError."""
    for data in (der, b"\x30" + bytes([min(len(der), 127)]) + der[:127]):
        with pytest.raises((ValueError, KeyError, IndexError)):
            parse_sgx_extension(data)


def test_every_truncation_of_the_extension_is_refused(sim: SimulatedTdx) -> None:
    """A shorter extension is no extension; the whole one says which platform it is."""
    der = sgx_extension()
    platform = parse_sgx_extension(der)
    assert platform.fmspc == intel.FMSPC
    assert platform.platform_instance_id == intel.INSTANCE_ID
    assert platform.sgx_components == intel.SGX_COMPONENTS
    assert (platform.dynamic_platform, platform.cached_keys, platform.smt_enabled) == (True, False, True)
    for size in range(len(der)):
        with pytest.raises((ValueError, KeyError, IndexError)):
            parse_sgx_extension(der[:size])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("fmspc",), "00 00 00 53 49 4d"),
        (("fmspc",), "0000"),
        (("issueDate",), "2026-05-31 00:00:00"),
        (("issueDate",), "2026-05-31T00:00:00+02:00"),
        (("nextUpdate",), "2026-13-31T00:00:00Z"),
        (("version",), True),
        (("version",), "3"),
        (("tcbEvaluationDataNumber",), -1),
        (("tcbEvaluationDataNumber",), 1 << 40),
        (("tcbLevels",), {}),
        (("tcbLevels",), [1]),
        (("tcbLevels", 0, "tcb", "sgxtcbcomponents", 3), {"svn": 256}),
        (("tcbLevels", 0, "tcb", "sgxtcbcomponents", 3), {"svn": True}),
        (("tcbLevels", 0, "tcb", "sgxtcbcomponents", 3), {}),
        (("tcbLevels", 0, "tcb", "sgxtcbcomponents", 3), 4),
        (("tcbLevels", 0, "tcb", "pcesvn"), None),
        (("tcbLevels", 0, "tcbStatus"), "TDRelaunchAdvised"),
        (("tcbLevels", 0, "advisoryIDs"), [7]),
        (("tdxModuleIdentities", 1, "tcbLevels", 0, "tcbStatus"), "ConfigurationNeeded"),
        (("tdxModuleIdentities", 0, "id"), "tdx_01"),
        (("tdxModuleIdentities", 0, "id"), "TDX_00"),
        (("tdxModuleIdentities", 1, "tcbLevels", 1, "tcb", "isvsvn"), 7),
    ],
)
def test_fields_have_one_way_to_be_written(path: tuple[Any, ...], value: Any) -> None:
    """Other spellings, types and orders are refused rather than understood."""
    document = intel.tcb_info(NOW)
    put(document, path, value)
    with pytest.raises(MalformedError) as caught:
        parse_tcb_info(intel.encode(document))
    assert caught.value.check is Check.TDX_COLLATERAL_FORMAT


def test_duplicate_keys_are_refused() -> None:
    """Two values for one key would let two readers see two documents."""
    text = intel.encode(intel.tcb_info(NOW)).replace('"version":3', '"version":3,"version":3')
    with pytest.raises(MalformedError):
        parse_tcb_info(text)


def test_the_very_text_is_signed(sim: SimulatedTdx) -> None:
    """The same JSON in another spelling is not what Intel signed."""
    good = sim.collateral(NOW)
    respelt = replace(good, tcb_info=json.dumps(json.loads(good.tcb_info)))
    with pytest.raises(VerificationError) as caught:
        verify(sim.quote(bytes(64)), respelt, (sim.root,), NOW)
    assert caught.value.check is Check.TDX_TCB_INFO_SIGNATURE


@pytest.mark.parametrize(
    "field", ["tcb_info", "qe_identity", "tcb_info_issuer_chain", "qe_identity_issuer_chain"]
)
@pytest.mark.parametrize("text", ["", "\ud800", "\0", "{}"])
def test_texts_that_are_nothing_are_refused(sim: SimulatedTdx, field: str, text: str) -> None:
    """Empty, unencodable and meaningless texts are refused as what they are."""
    broken = replace(sim.collateral(NOW), **{field: text})  # type: ignore[arg-type]  # by name
    with pytest.raises(AttestationError):
        verify(sim.quote(bytes(64)), broken, (sim.root,), NOW)


@pytest.mark.parametrize("field", ["root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"])
@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"\xff" * 65])
def test_bytes_that_are_nothing_are_refused(sim: SimulatedTdx, field: str, data: bytes) -> None:
    """Missing or meaningless lists and signatures never count as unrevoked or signed."""
    broken = replace(sim.collateral(NOW), **{field: data})  # type: ignore[arg-type]  # by name
    with pytest.raises(AttestationError):
        verify(sim.quote(bytes(64)), broken, (sim.root,), NOW)


def judged(sim: SimulatedTdx, quote: bytes, collateral: IntelCollateral, now: datetime) -> str:
    """The status, or the check that refuses."""
    try:
        return verify(quote, collateral, (sim.root,), now).tcb_status
    except AttestationError as exc:
        return exc.check


def test_time_is_judged_anew_on_every_call(sim: SimulatedTdx) -> None:
    """Collateral that was good a moment ago, and is remembered, still ends at its end."""
    quote, collateral = sim.quote(bytes(64)), sim.collateral(NOW)
    claims = verify(quote, collateral, (sim.root,), NOW)
    assert claims.collateral_issued == NOW - timedelta(days=1)
    assert judged(sim, quote, collateral, claims.collateral_expires) == "UpToDate"
    assert (
        judged(sim, quote, collateral, claims.collateral_expires + timedelta(seconds=1))
        == Check.TDX_PCK_CRL_DATES
    )
    assert judged(sim, quote, collateral, NOW - timedelta(days=2)) == Check.TDX_ROOT_CRL_DATES
    assert judged(sim, quote, collateral, NOW) == "UpToDate"


@pytest.mark.parametrize("role", ["pck", "tcb_signing", "platform_ca", "root"])
def test_claims_end_with_the_first_certificate_to_end(role: str) -> None:
    """Whatever the claims rest on bounds them: certificates as well as lists and documents."""
    sim = SimulatedTdx.create()
    signer = getattr(sim._pki, role)
    above = {"pck": "platform_ca", "root": "root"}.get(role, "root")
    ends = NOW + timedelta(days=2)
    constraints = signer.cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    extra = [(e.value, e.critical) for e in signer.cert.extensions if not isinstance(e.value, _MADE_BY_ISSUE)]
    sim._pki.__dict__[role] = issue(
        signer.cert.subject,
        signer.key,
        None if role == "root" else getattr(sim._pki, above),
        not_before=NOW - timedelta(days=9),
        not_after=ends,
        ca=constraints.ca,
        extensions=extra,
    )
    assert verify(sim.quote(bytes(64)), sim.collateral(NOW), (sim.root,), NOW).collateral_expires == ends


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        (TdxDefect.PCK_REVOKED, Check.TDX_PCK_REVOKED),
        (TdxDefect.CA_REVOKED, Check.TDX_CA_REVOKED),
        (TdxDefect.SIGNER_REVOKED, Check.TDX_SIGNER_REVOKED),
    ],
)
def test_revocation_is_judged_anew_on_every_call(sim: SimulatedTdx, defect: TdxDefect, check: Check) -> None:
    """A chain that is remembered as good is refused as soon as a list names it, and only then."""
    quote, good, revoked = sim.quote(bytes(64)), sim.collateral(NOW), sim.collateral(NOW, defect=defect)
    for _ in range(2):
        assert judged(sim, quote, good, NOW) == "UpToDate"
        assert judged(sim, quote, revoked, NOW) == check


def test_roots_are_judged_anew_on_every_call(sim: SimulatedTdx) -> None:
    """What one caller's root vouched for is nothing to the next caller."""
    quote, collateral = sim.quote(bytes(64)), sim.collateral(NOW)
    assert verify(quote, collateral, (sim.root,), NOW).root == sim.root
    with pytest.raises(VerificationError) as caught:
        verify(quote, collateral, (SimulatedTdx.create().root,), NOW)
    assert caught.value.check is Check.TDX_ROOT


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["UpToDate", "UpToDate"], "UpToDate"),
        (["UpToDate", "OutOfDate"], "OutOfDate"),
        (["SWHardeningNeeded", "OutOfDate"], "OutOfDate"),
        (["ConfigurationNeeded", "OutOfDate"], "OutOfDateConfigurationNeeded"),
        (["ConfigurationAndSWHardeningNeeded", "OutOfDate"], "OutOfDateConfigurationNeeded"),
        (["OutOfDateConfigurationNeeded", "UpToDate"], "OutOfDateConfigurationNeeded"),
        (["ConfigurationAndSWHardeningNeeded", "UpToDate"], "ConfigurationAndSWHardeningNeeded"),
        (["ConfigurationNeeded", "UpToDate"], "ConfigurationNeeded"),
        (["SWHardeningNeeded", "UpToDate"], "SWHardeningNeeded"),
        (["OutOfDate", "Revoked"], "Revoked"),
        (["Revoked", "UpToDate"], "Revoked"),
    ],
)
def test_statuses_converge_as_in_intels_library(statuses: list[str], expected: str) -> None:
    """Platform, module and enclave make one status, whatever their order."""
    assert converge(map(TcbStatus, statuses)) == expected
    assert converge(map(TcbStatus, reversed(statuses))) == expected
