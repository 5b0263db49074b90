"""Which GPUs a client accepts. The default demands at least one, complete collateral, and confidential mode without holes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from attestation.checks import Check
from attestation.errors import Violation
from attestation.nvidia.evidence import Arch, Feature
from attestation.nvidia.tokens import TokenClaims
from attestation.nvidia.verify import GpuClaims


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """Strict by default; each loosening has a name."""

    required: bool = True  # False: a machine without GPUs is accepted; GPUs that are there must still pass
    count: int | None = None  # exactly so many GPUs, switches not counted
    archs: frozenset[Arch] = frozenset({Arch.HOPPER, Arch.BLACKWELL, Arch.LS10})
    min_driver: str | None = None  # "570.86.10"
    min_vbios: str | None = None  # "96.00.5E.00.01"; of GPUs, not of switches
    allow_missing_rim: bool = False  # golden values not compared where NVIDIA's manifest is not at hand
    allow_unknown_revocation: bool = False  # certificates without an OCSP answer that calls them good
    allow_missing_fwid: bool = False  # drivers before 550 do not report it
    allow_unreported_state: bool = False  # evidence in NVIDIA's own shape says nothing of the driver's mode
    allow_devtools: bool = False  # developer tools may read the GPU's memory
    allow_protected_pcie: bool = False  # PCIe traffic isolated, not encrypted
    allow_unattested_switches: bool = False  # in protected PCIe mode, without evidence of the NVSwitches
    allow_token: bool = False  # a vendor service's token may stand in for the GPUs' own evidence
    token_jwks: str = ""  # that service's public keys (a JWKS document), pinned here

    def check(
        self, claims: Sequence[GpuClaims], now: datetime, token: TokenClaims | None = None
    ) -> list[Violation]:
        """Every violation, not only the first; what is wrong with several devices in the same way stands once."""
        _ = now  # the dates were judged with the signatures
        gpus = [c for c in claims if not c.switch]
        violations = self._check_count(len(gpus), token)
        violations += _check_duplicates(claims)
        violations += _check_vouched_twice(token)
        violations += self._check_topology(gpus, [c for c in claims if c.switch])
        for claim in claims:
            violations += self._check_device(claim)
            violations += self._check_collateral(claim)
            violations += [] if claim.switch else self._check_mode(claim)
        return list(dict.fromkeys(violations))

    def _check_count(self, found: int, token: TokenClaims | None) -> list[Violation]:
        if token is not None and not found:
            if not self.allow_token:
                return [
                    Violation(Check.GPU_TOKEN, "the GPUs' own evidence", f"only a token of {token.issuer!r}")
                ]
            found = len(token.gpus)
        if self.count is not None and found != self.count:
            return [Violation(Check.POLICY_GPU, f"{self.count} GPUs", f"{found}")]
        if self.required and not found:
            return [Violation(Check.POLICY_GPU, "evidence of at least one GPU", "none")]
        return []

    def _check_device(self, claim: GpuClaims) -> list[Violation]:
        violations = []
        if claim.arch not in self.archs:
            accepted = " or ".join(sorted(self.archs)) or "none: the policy lists no architecture"
            violations.append(Violation(Check.GPU_ARCH, accepted, f"{claim.arch} ({claim.model})"))
        if claim.fwid is None and not claim.switch and not self.allow_missing_fwid:
            violations.append(Violation(Check.GPU_FWID, "a firmware digest in the report", "none"))
        if claim.switch:
            return violations
        if self.min_driver is not None and driver_key(claim.driver) < driver_key(self.min_driver):
            violations.append(Violation(Check.GPU_DRIVER, f"driver {self.min_driver} or newer", claim.driver))
        if self.min_vbios is not None and vbios_key(claim.vbios) < vbios_key(self.min_vbios):
            violations.append(Violation(Check.GPU_VBIOS, f"VBIOS {self.min_vbios} or newer", claim.vbios))
        return violations

    def _check_collateral(self, claim: GpuClaims) -> list[Violation]:
        violations = []
        if claim.missing_rims and not self.allow_missing_rim:
            missing = ", ".join(claim.missing_rims)
            violations.append(Violation(Check.GPU_RIM_MISSING, f"NVIDIA's manifests of {missing}", "none"))
        if claim.unchecked and not self.allow_unknown_revocation:
            violations.append(
                Violation(
                    Check.GPU_REVOCATION_UNKNOWN,
                    f"OCSP answers that call {', '.join(map(repr, claim.unchecked))} good",
                    "none",
                )
            )
        return violations

    def _check_mode(self, claim: GpuClaims) -> list[Violation]:
        wrong = []
        if claim.state is None:
            wrong += (
                []
                if self.allow_unreported_state
                else [("a reported state of confidential computing", "none")]
            )
        else:
            wrong += [] if claim.state.confidential else [("confidential computing on", "off")]
            wrong += (
                [("developer tools off", "on")] if claim.state.devtools and not self.allow_devtools else []
            )
            wrong += [] if claim.state.ready else [("a GPU in the ready state", "not ready")]
        if _protected_pcie(claim) and not self.allow_protected_pcie:
            wrong.append(("encrypted PCIe traffic", "protected PCIe mode"))
        return [Violation(Check.GPU_MODE, expected, found) for expected, found in wrong]

    def _check_topology(self, gpus: Sequence[GpuClaims], switches: Sequence[GpuClaims]) -> list[Violation]:
        """One mode everywhere; in protected PCIe mode, exactly the switches and GPUs that name one another."""
        modes = {(c.feature, c.protected_pcie) for c in gpus}
        if len(modes) > 1:
            found = ", ".join(sorted(f"{feature or 'unreported'}" for feature, _ in modes))
            return [Violation(Check.GPU_MODE, "GPUs that all run in one mode", found)]
        if not any(_protected_pcie(c) for c in gpus) or self.allow_unattested_switches:
            return []
        violations = []
        linked, attested = {p for c in gpus for p in c.pdis}, {p for c in switches for p in c.pdis}
        if not linked or linked != attested:
            violations.append(Violation(Check.GPU_SWITCH, f"switches {_hex(linked)}", _hex(attested)))
        violations += [
            Violation(
                Check.GPU_SWITCH,
                f"the {len(c.gpu_pdis)} GPUs that switch {_hex(set(c.pdis))} links",
                f"{len(gpus)}",
            )
            for c in switches
            if len(c.gpu_pdis) != len(gpus)
        ]
        return violations


def _check_duplicates(claims: Sequence[GpuClaims]) -> list[Violation]:
    devices = [c.device for c in claims]
    repeated = dict.fromkeys(c.device.hex()[:16] for c in claims if devices.count(c.device) > 1)
    return [
        Violation(Check.GPU_DUPLICATE, "different devices", f"device {d}… more than once") for d in repeated
    ]


def _check_vouched_twice(token: TokenClaims | None) -> list[Violation]:
    """A service vouches for each piece of evidence that it is given, also for the same GPU's under two names."""
    named = [(device.switch, device.ueid) for device in token.devices] if token else []
    repeated = dict.fromkeys(ueid for switch, ueid in named if named.count((switch, ueid)) > 1)
    return [
        Violation(
            Check.GPU_DUPLICATE, "different devices", f"device {ueid or 'without a ueid'} more than once"
        )
        for ueid in repeated
    ]


def _protected_pcie(claim: GpuClaims) -> bool:
    return claim.feature is Feature.PPCIE or claim.protected_pcie is True


def driver_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def vbios_key(version: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in re.findall(r"[0-9A-Fa-f]+", version))


def _hex(pdis: set[bytes]) -> str:
    return ", ".join(sorted(p.hex() for p in pdis)) or "none"
