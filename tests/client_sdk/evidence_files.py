"""Simulated machines with all their evidence and collateral in files, as somebody at a command line has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from attestation._b64 import b64url_encode
from attestation.nitro import parse_document
from attestation.nvidia.rim import load_rim
from attestation.simulator import SimulatedTdx
from attestation.simulator.nitro import NitroDefect, SimulatedNitro
from attestation.simulator.nvidia import GpuDefect, Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp, SnpDefect
from attestation.simulator.tdx import TdxDefect
from attestation.simulator.vtpm import SimulatedVtpm, VtpmDefect
from client_sdk.amd_file import dump_amd

NOW = datetime.now(UTC).replace(microsecond=0)
AT = str(int(NOW.timestamp()))
NONCE = bytes(range(32))


@cache
def intel() -> SimulatedTdx:
    return SimulatedTdx.create()


@cache
def amd() -> SimulatedSnp:
    return SimulatedSnp()


@cache
def nvidia() -> SimulatedNvidia:
    return SimulatedNvidia.create(Machine(gpus=2))


@cache
def amazon() -> SimulatedNitro:
    return SimulatedNitro()


@cache
def microsoft() -> SimulatedVtpm:
    return SimulatedVtpm(amd())


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder, and the command line's arguments for what was put into it."""

    folder: Path

    def file(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def tdx(self, quote: TdxDefect | None = None, collateral: TdxDefect | None = None) -> list[str]:
        given = intel().collateral(NOW, defect=collateral).to_json()
        return [
            *("evidence", "tdx", self.file("quote", intel().quote(bytes(64), defect=quote))),
            *("--collateral", self.file("collateral.json", given), "--at", AT),
            *("--root", self.file("root.der", intel().root_der)),
        ]

    def snp(self, defect: SnpDefect | None = None, report: bytes | None = None) -> list[str]:
        given = amd().collateral(NOW, defect)
        root = given.chain.rpartition(b"-----BEGIN")
        arguments = [
            *("evidence", "snp", self.file("report", report or amd().report(bytes(64)))),
            *("--vek", self.file("vek.der", given.vek), "--chain", self.file("chain.pem", given.chain)),
            *("--at", AT, "--root", self.file("ark.pem", root[1] + root[2])),
        ]
        return [*arguments, "--crl", self.file("crl.der", given.crl)] if given.crl else arguments

    def snp_fetched(self) -> list[str]:
        fetched = self.file("amd.json", dump_amd(amd().collateral(NOW)))
        arguments = self.snp()
        return [*arguments[:3], "--collateral", fetched, *arguments[arguments.index("--at") : -2]]

    def azure(self, defect: VtpmDefect | None = None) -> list[str]:
        evidence = microsoft().evidence(NONCE, defect)
        text = {
            "version": 1,
            "tpm_quote": {
                "message": evidence.quote.hex(),
                "signature": evidence.signature.hex(),
                "pcrs": [pcr.hex() for pcr in evidence.pcrs],
            },
            "hcl_report": b64url_encode(evidence.hcl_report),
        }
        file = self.file("azure.json", json.dumps(text).encode())
        snp = self.snp()
        return ["evidence", "azure", file, "--nonce", NONCE.hex(), *snp[3:]]

    def nitro(self, defect: NitroDefect | None = None) -> list[str]:
        document = amazon().document(NOW, defect)
        root = parse_document(amazon().document(NOW)).cabundle[0]
        return [
            *("evidence", "nitro", self.file("document", document), "--at", AT),
            *("--root", self.file("aws.der", root)),
        ]

    def nvidia(self, defect: GpuDefect | None = None, nonce: bytes = NONCE) -> list[str]:
        given = nvidia().collateral(NOW, defect)
        device_root = nvidia().devices(NONCE)[0].chain.rpartition(b"-----BEGIN")
        rim_root = load_rim(nvidia().collateral(NOW).rims[0]).chain[-1].public_bytes(Encoding.DER)
        return [
            *("evidence", "nvidia", self.file("gpus.json", nvidia().evidence(NONCE, defect))),
            *("--nonce", nonce.hex(), "--at", AT),
            *self._each("--rim", given.rims),
            *self._each("--ocsp", given.ocsp),
            *("--root", self.file("device.pem", device_root[1] + device_root[2])),
            *("--root", self.file("rim.der", rim_root)),
        ]

    def _each(self, option: str, blobs: Sequence[bytes]) -> list[str]:
        files = [self.file(f"{option[2:]}-{number}", blob) for number, blob in enumerate(blobs)]
        return [part for file in files for part in (option, file)]
