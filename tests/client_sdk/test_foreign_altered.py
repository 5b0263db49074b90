"""Other providers' evidence, altered in every way that its format can tell: refused by the check that covers it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.evidence import TdxEvidence
from client_sdk.foreign.judge import BOUND, CHANNEL
from client_sdk.foreign.tinfoil import TDX_QUOTE
from client_sdk.present import State
from tests.client_sdk.evidence_files import amd, intel
from tests.client_sdk.foreign_judged import NONCE, OTHER, accepted, judge, one, refused, state
from tests.client_sdk.foreign_servers import (
    COMPOSE,
    SERVER,
    dstack,
    gpu_items,
    identity,
    nitriding,
    ratls,
    tinfoil_v3,
    wrap_v2,
)


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
