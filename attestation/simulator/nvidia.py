"""A simulated NVIDIA and one machine with its GPUs and NVSwitches: evidence, manifests and OCSP answers of its own roots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha384
from itertools import pairwise
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import GpuDevice, GpuState, dump_list
from attestation.nvidia.evidence import Arch, Feature
from attestation.roots import Root, Roots
from attestation.simulator import pki
from attestation.simulator.nvidia_defects import GpuDefect
from attestation.simulator.nvidia_pki import (
    DEVICE_NAMES,
    FROM,
    RIM_NAMES,
    TO,
    answer,
    authorities,
    derive,
    issue,
)
from attestation.simulator.nvidia_report import (
    binary_vbios,
    dice_extension,
    make_report,
    plain_opaque,
    typed_opaque,
)
from attestation.simulator.nvidia_rim import make_rim

__all__ = ["GpuDefect", "Machine", "SimulatedNvidia"]

_CHIPS = {Arch.HOPPER: "GH100", Arch.BLACKWELL: "GB100", Arch.LS10: "LS_10"}
_BLOCKS = 64
_SVN_FIELD = 40
_OFF, _ON = b"\x55", b"\xaa"
_D = GpuDefect


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What stands in the simulated machine."""

    arch: Arch = Arch.HOPPER
    gpus: int = 1
    switches: int = 0
    driver: str = "580.95.05"
    vbios: str = "96.00.74.00.1A"
    switch_bios: str = "96.10.55.00.01"
    feature: Feature = Feature.MPT
    typed_opaque: bool = False  # the layout of newer drivers


class SimulatedNvidia:
    """Two roots, and all other keys derived from them: the same roots give the same chips in every process."""

    def __init__(
        self,
        device_root: ec.EllipticCurvePrivateKey,
        rim_root: ec.EllipticCurvePrivateKey,
        machine: Machine = Machine(),
    ) -> None:
        self.machine = machine
        self._device = authorities(device_root, DEVICE_NAMES)
        self._rim = authorities(rim_root, RIM_NAMES)

    @classmethod
    def create(cls, machine: Machine = Machine()) -> SimulatedNvidia:
        """New roots, in memory only."""
        return cls(pki.p384_key(), pki.p384_key(), machine)

    @classmethod
    def load_or_create(cls, folder: Path, machine: Machine = Machine()) -> SimulatedNvidia:
        """The roots in `folder`, made there when missing, so that several processes share them."""
        keys = [
            pki.load_or_make_key(folder / f"nvidia-{name}.pem", pki.p384_key)
            for name in ("device-root", "rim-root")
        ]
        device_root, rim_root = (cast(ec.EllipticCurvePrivateKey, key) for key in keys)
        return cls(device_root, rim_root, machine)

    @property
    def device_root(self) -> Root:
        """The trust anchor of the chips, to name in a policy."""
        return pki.pin(self._device[0])

    @property
    def rim_root(self) -> Root:
        """The trust anchor of the manifests, to name in a policy."""
        return pki.pin(self._rim[0])

    def trust(self, roots: Roots) -> Roots:
        """`roots` with the simulated anchors in NVIDIA's place."""
        return replace(roots, nvidia_device=(self.device_root,), nvidia_rim=(self.rim_root,))

    def evidence(self, nonce: bytes, defect: GpuDefect | None = None) -> bytes:
        """The JSON list of every device in the machine, asked with `nonce`."""
        return dump_list(self.devices(nonce, defect))

    def devices(self, nonce: bytes, defect: GpuDefect | None = None) -> tuple[GpuDevice, ...]:
        machine = self.machine
        made = [
            *(self._one(machine.arch, number, nonce, defect) for number in range(machine.gpus)),
            *(self._one(Arch.LS10, number, nonce, defect) for number in range(machine.switches)),
        ]
        if defect is _D.DUPLICATE:
            made.append(made[0])
        if defect is _D.GPU_MISSING:
            made = made[1:]
        if defect is _D.SWITCH_MISSING:
            made = made[:-1]
        return tuple(made)

    def collateral(
        self, now: datetime, defect: GpuDefect | None = None, *, nonce: bytes | None = None
    ) -> NvidiaCollateral:
        """Every manifest and OCSP answer that the machine's evidence needs at `now`."""
        signers = self._rim_chain(now, defect)
        chains = [signers, *(self._chip_chain(*each, defect)[1:] for each in self._each())]
        pairs = {cert.der: (cert.cert, issuer) for chain in chains for cert, issuer in pairwise(chain)}
        answers = [answer(*pair, now, defect=defect, nonce=nonce) for pair in pairs.values()]
        if defect is _D.OCSP_MISSING:
            answers = answers[1:]
        return NvidiaCollateral(
            rims=tuple(self._rims(signers, defect)), ocsp=tuple(answers), ocsp_nonce=nonce
        )

    # the devices

    def _each(self) -> Iterator[tuple[Arch, int]]:
        yield from ((self.machine.arch, number) for number in range(self.machine.gpus))
        yield from ((Arch.LS10, number) for number in range(self.machine.switches))

    def _one(self, arch: Arch, number: int, nonce: bytes, defect: GpuDefect | None) -> GpuDevice:
        chain = self._chip_chain(arch, number, defect)
        key = cast(ec.EllipticCurvePrivateKey, chain[0].key)
        asked = sha384(nonce).digest()[:32] if defect is _D.OTHER_NONCE else nonce
        measurements = _measurements(arch)
        if defect is _D.MEASUREMENT_CHANGED:
            measurements[3] = bytes(48)
        report = make_report(key, asked, measurements, self._opaque(arch, number, defect))
        if defect is _D.REPORT_CHANGED:
            report = report[:60] + bytes([report[60] ^ 1]) + report[61:]
        if defect is _D.SIGNATURE_CHANGED:
            report = report[:-1] + bytes([report[-1] ^ 1])
        if defect is _D.TRUNCATED:
            report = report[:-1]
        said = arch
        if defect is _D.OTHER_ARCH:
            said = Arch.BLACKWELL if arch is Arch.HOPPER else Arch.HOPPER
        pem = "".join(link.pem for link in chain).encode()
        return GpuDevice(report=report, chain=pem, arch=said, nonce=nonce, state=_state(arch, defect))

    def _opaque(self, arch: Arch, number: int, defect: GpuDefect | None) -> bytes:
        machine = self.machine
        switch_pdis = [_pdi("switch", i) for i in range(machine.switches)]
        gpu_pdis = [_pdi("gpu", i) for i in range(machine.gpus)]
        if arch is Arch.LS10:
            linked = b"".join(pdi[::-1] for pdi in gpu_pdis).ljust(64, b"\0")
            return plain_opaque(
                {6: machine.switch_bios.encode(), 22: switch_pdis[number], 26: linked + bytes(64)}
            )
        feature = machine.feature
        if defect is _D.MIXED_MODES and number == 0:
            feature = Feature.SPT if feature is not Feature.SPT else Feature.MPT
        value = 9 if defect is _D.UNKNOWN_FEATURE else list(Feature).index(feature)
        fields = {
            3: machine.driver.encode() + b"\0",
            6: binary_vbios(machine.vbios),
            11: _OFF,
            14: (0x3B1).to_bytes(4, "little"),
            15: b"882\0",
            17: b"1010\0",
            18: b"0200\0",
            20: _firmware(b"other" if defect is _D.OTHER_FIRMWARE else b""),
            21: _ON if machine.feature is Feature.PPCIE else _OFF,
            22: b"".join(pdi[::-1] for pdi in switch_pdis),
            34: (77 if defect is _D.UNKNOWN_OPAQUE_VERSION else 1).to_bytes(2, "little"),
            35: b"GB999" if defect is _D.OTHER_CHIP else _CHIPS[arch].encode(),
            36: value.to_bytes(2, "little"),
        }
        if defect is _D.FWID_MISSING:
            del fields[20]
        if machine.typed_opaque or defect in {_D.UNKNOWN_OPAQUE_PROFILE, _D.SVN_TOO_LOW}:
            profile = int(defect is _D.UNKNOWN_OPAQUE_PROFILE)
            major = 77 if defect is _D.UNKNOWN_OPAQUE_VERSION else 2
            svns = {_SVN_FIELD: 4 if defect is _D.SVN_TOO_LOW else 5}
            return typed_opaque(fields, svns, major=major, profile=profile)
        return plain_opaque(fields)

    def _chip_chain(self, arch: Arch, number: int, defect: GpuDefect | None) -> list[pki.Signer]:
        """Leaf, boot ROM, provisioner, family, root."""
        root, family, provisioner = self._device
        if defect is _D.OTHER_ROOT:
            root, family, provisioner = authorities(derive(root.key, "stranger"), DEVICE_NAMES)
        chip = "GX999" if defect is _D.UNKNOWN_CHIP else _CHIPS[arch]
        seed, label = provisioner.key, f"{arch} {number}"
        issuer = (
            replace(provisioner, key=derive(seed, "stranger")) if defect is _D.CHAIN_FORGED else provisioner
        )
        boot = issue(
            f"{chip} A01 GSP BROM", derive(seed, f"{label} boot"), issuer, ca=defect is not _D.CHIP_IS_NO_CA
        )
        leaf_key = derive(seed, f"{label} leaf")
        leaf = issue(
            f"{chip} A01 GSP FMC LF",
            leaf_key,
            boot,
            ca=False,
            until=FROM + timedelta(days=1) if defect is _D.LEAF_EXPIRED else TO,
            extensions=[(dice_extension(arch, leaf_key.public_key(), _firmware(b"")), False)],
        )
        return [leaf, boot, provisioner, family, root]

    # manifests

    def _rim_chain(self, now: datetime, defect: GpuDefect | None) -> list[pki.Signer]:
        root, family, l3 = self._rim
        if defect is _D.RIM_OTHER_ROOT:
            root, family, l3 = authorities(derive(root.key, "stranger"), RIM_NAMES)
        issuer = replace(l3, key=derive(l3.key, "stranger")) if defect is _D.RIM_FORGED else l3
        until = now - timedelta(days=1) if defect is _D.RIM_EXPIRED else now + timedelta(days=365)
        start = now - timedelta(days=365)
        signer = issue("RIM L4 Signer", derive(l3.key, "signer"), issuer, ca=False, start=start, until=until)
        return [signer, l3] if defect is _D.RIM_CHAIN_SHORT else [signer, l3, family, root]

    def _rims(self, signers: Sequence[pki.Signer], defect: GpuDefect | None) -> Iterator[bytes]:
        machine, chip = self.machine, _CHIPS[self.machine.arch]
        if defect is _D.RIM_OF_OTHER_CHIP:
            chip = "GH199"
        values = _measurements(machine.arch)
        accepted = {i: [sha384(b"an older build").digest(), value] for i, value in enumerate(values)}
        driver = {i: accepted[i] for i in range(20, 50)}
        driver[35] = [sha384(b"an enabled NVDEC0").digest()]  # disabled here, so not compared
        bios = {i: accepted[i] for i in range(21 if defect is _D.RIM_CONFLICT else 20)}
        version = "1.0" if defect is _D.RIM_OF_OTHER_VERSION else machine.driver
        svns = {_SVN_FIELD: 5} if machine.typed_opaque or defect is _D.SVN_TOO_LOW else {}
        rims = [
            make_rim(chip, version, driver, signers, min_svns=svns),
            make_rim(chip, machine.vbios, bios, signers),
        ]
        if machine.switches:
            values = _measurements(Arch.LS10)
            rims.append(
                make_rim("LS10", machine.switch_bios, {i: [v] for i, v in enumerate(values)}, signers)
            )
        if defect is _D.RIM_CHANGED:
            rims[0] = rims[0].replace(b'active="True"', b'active="False"', 1)
        if defect is _D.RIM_WITH_DTD:
            rims[0] = b'<!DOCTYPE SoftwareIdentity [<!ENTITY a "b">]>' + rims[0]
        if defect is _D.RIM_NO_XML:
            rims[0] = rims[0][:-1]
        yield from rims[1:] if defect is _D.RIM_MISSING else rims


def _pdi(kind: str, number: int) -> bytes:
    return sha384(f"simulated {kind} {number}".encode()).digest()[:8]


def _firmware(variant: bytes) -> bytes:
    return sha384(b"simulated GPU firmware" + variant).digest()


def _measurements(arch: Arch) -> list[bytes]:
    return [sha384(f"simulated {arch} measurement {i}".encode()).digest() for i in range(_BLOCKS)]


def _state(arch: Arch, defect: GpuDefect | None) -> GpuState | None:
    if arch is Arch.LS10 or defect is _D.STATE_MISSING:
        return None
    return GpuState(
        confidential=defect is not _D.CONFIDENTIAL_OFF,
        devtools=defect is _D.DEVTOOLS,
        ready=defect is not _D.NOT_READY,
    )
