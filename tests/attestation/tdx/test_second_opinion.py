"""Thousands of made-up platforms: our TCB status and advisories are those of the independent verifier, or we refuse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx
from attestation.simulator import tdx_collateral as intel
from attestation.tdx import TcbStatus, TdReport, TdxPolicy, verify
from tests.attestation.tdx.second_opinion import REFUSED, ask

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PLATFORM_STATUSES = [str(s) for s in TcbStatus if not s.is_ours]
SVN_STATUSES = ["UpToDate", "UpToDate", "OutOfDate", "OutOfDate", "Revoked"]
ANY_TD = TdxPolicy(any_measurement=True, accept_tcb_status=frozenset(TcbStatus), accept_any_advisory=True)


def near(rng: random.Random, svns: Sequence[int]) -> tuple[int, ...]:
    """The same components, up to two of them a little off."""
    changed = list(svns)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        i = rng.randrange(len(changed))
        changed[i] = max(0, changed[i] + rng.choice((-1, -2, 1)))
    return tuple(changed)


def svn_levels(rng: random.Random, low: int, high: int, *, ordered: bool) -> list[dict[str, Any]]:
    """Up to three levels of an enclave or a module."""
    svns = rng.sample(range(low, high), rng.randint(1, 3))
    levels = []
    for svn in sorted(svns, reverse=True) if ordered else svns:
        level = {"tcb": {"isvsvn": svn}, "tcbDate": intel.LEVEL_DATE, "tcbStatus": rng.choice(SVN_STATUSES)}
        levels.append({**level, "advisoryIDs": [f"INTEL-SA-0000{rng.randint(3, 6)}"]})
    return levels


def make_case(
    rng: random.Random, *, ordered: bool = True
) -> tuple[TdReport, int, dict[str, Any], dict[str, Any]]:
    """A TD, the version of its quote, TCB info and QE identity."""
    info, identity = intel.tcb_info(NOW), intel.qe_identity(NOW)
    info["tcbLevels"] = [
        intel.platform_level(
            rng.choice(PLATFORM_STATUSES),
            sgx=near(rng, intel.SGX_COMPONENTS),
            tdx=near(rng, intel.TDX_COMPONENTS),
            pce_svn=rng.choice((13, 13, 13, 12, 11, 14)),
            advisories=rng.choice(((), ("INTEL-SA-00001",), ("INTEL-SA-00002", "INTEL-SA-00001"))),
        )
        for _ in range(rng.randint(1, 5))
    ]
    info["tdxModuleIdentities"][1]["tcbLevels"] = svn_levels(rng, 1, 10, ordered=ordered)
    identity["tcbLevels"] = svn_levels(rng, 2, 7, ordered=ordered)
    td = rng.choice((DEFAULT_TD, DEFAULT_TD15))
    svn = bytes((rng.randint(1, 9), rng.choice((0, 1, 1, 1, 3)), *td.tee_tcb_svn[2:]))
    td = replace(td, tee_tcb_svn=svn)
    if td.tee_tcb_svn2 is not None:
        later = bytes((rng.randint(1, 9), rng.choice((0, 1, 1, 1, 3)), rng.choice((4, 5)), *svn[3:]))
        td = replace(td, tee_tcb_svn2=rng.choice((svn, later)))
    version = rng.choice((4, 5)) if td.tee_tcb_svn2 is None else 5
    return td, version, info, identity


def judge(sim: SimulatedTdx, seed: int, *, ordered: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Our verdict and theirs on the case of this seed."""
    td, version, info, identity = make_case(random.Random(seed), ordered=ordered)
    quote = sim.quote(bytes(64), td=td, version=version)
    collateral = sim.collateral(NOW, info=info, identity=identity)
    try:
        claims = verify(quote, collateral, (sim.root,), NOW)
        assert ANY_TD.check(claims, NOW) == []
        ours: tuple[str, tuple[str, ...]] = (str(claims.tcb_status), claims.advisories)
    except AttestationError as exc:
        ours = (REFUSED, (exc.check,))
    return ours, ask(quote, collateral, NOW, sim.root_der)


def compare(sim: SimulatedTdx, seeds: range) -> set[str]:
    """Assert agreement on every case with ordered levels; return the statuses that occurred."""
    seen = set()
    for seed in seeds:
        ours, theirs = judge(sim, seed, ordered=True)
        seen.add(ours[0])
        if ours[0] == REFUSED:
            assert theirs[0] == REFUSED, f"seed {seed}: we refuse ({ours[1]}), they say {theirs}"
        elif ours != theirs:
            # Intel's library advises a restart only where the TDX module was out of date at launch
            assert ours[0].startswith("OutOfDate"), f"seed {seed}: we say {ours}, they say {theirs}"
            assert theirs == (f"TDRelaunchAdvised{_configuration(theirs[0])}", ours[1]), f"seed {seed}"
    return seen


def _configuration(status: str) -> str:
    return "ConfigurationNeeded" if status.endswith("ConfigurationNeeded") else ""


def test_a_few_hundred_platforms_get_the_same_verdict(sim: SimulatedTdx) -> None:
    """Status and advisories agree, refusals too."""
    assert {REFUSED, "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"} <= compare(sim, range(300))


@pytest.mark.slow
def test_thousands_of_platforms_get_the_same_verdict(sim: SimulatedTdx) -> None:
    """The same over enough cases to meet every status, restart advice included."""
    expected = {str(s) for s in TcbStatus if s is not TcbStatus.REVOKED} | {REFUSED}
    assert compare(sim, range(10_000, 18_000)) == expected


def test_unordered_levels_are_refused_rather_than_read_either_way(sim: SimulatedTdx) -> None:
    """Levels of an enclave or module out of order are refused, where first-match readers disagree with sorting ones."""
    refused = 0
    for seed in range(100):
        ours, theirs = judge(sim, seed, ordered=False)
        if ours == (REFUSED, (Check.TDX_COLLATERAL_FORMAT,)):
            refused += 1
        else:
            assert ours[0] == theirs[0] == REFUSED or ours == theirs, f"seed {seed}"
    assert refused > 10
