"""What to ask NVIDIA's services for, so that evidence can be judged offline: names of manifests, OCSP requests. Asks nothing.

The evidence says what is needed, and is not believed yet: a liar can at worst make somebody ask in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from attestation._x509 import parse_chain
from attestation.checks import Check
from attestation.nvidia.devices import GpuDevice, parse_list
from attestation.nvidia.evidence import Arch, GpuEvidence, parse_evidence
from attestation.nvidia.identity import DEVICE_CHAIN_LENGTH, Identity, read_identity
from attestation.nvidia.rim import load_rim

OCSP_URL = "http://ocsp.ndis.nvidia.com"  # for certificates that name no responder, as those of Hopper chips
_SWITCH_BOARD = "5612_0002_890"  # NVSwitch reports do not name their board; LS10 has this one


@dataclass(frozen=True, slots=True)
class OcspQuestion:
    """One request to POST as application/ocsp-request."""

    url: str
    request: bytes


def rim_ids(evidence: GpuEvidence, identity: Identity) -> tuple[str, ...]:
    """Under which names NVIDIA's RIM service has the manifests of this GPU's driver and VBIOS."""
    vbios = evidence.vbios.replace(".", "").upper()
    if identity.arch is Arch.LS10:
        return (f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{vbios}",)
    # asking for a Blackwell driver under the Hopper name gives a well signed manifest of the wrong chip
    family = "NV_GPU_DRIVER" if identity.arch is Arch.HOPPER else "NV_GPU_CC_DRIVER"
    board = f"{evidence.project}_{evidence.project_sku}_{evidence.chip_sku}".upper()
    return f"{family}_{identity.chip}_{evidence.driver}", f"NV_GPU_VBIOS_{board}_{vbios}"


def needed_rims(data: bytes) -> tuple[str, ...]:
    """The names of every manifest that the devices of NVIDIA's JSON list need, each once."""
    ids = [
        name
        for device in parse_list(data)
        for name in rim_ids(parse_evidence(device.report), read_identity(_chain(device)))
    ]
    return tuple(dict.fromkeys(ids))


def needed_ocsp(data: bytes, rims: Sequence[bytes]) -> tuple[OcspQuestion, ...]:
    """One question for each certificate of the devices and of the manifests that NVIDIA's responder knows."""
    chains: list[Sequence[x509.Certificate]] = [_chain(device)[1:] for device in parse_list(data)]
    chains += [load_rim(rim).chain for rim in rims]
    pairs = dict.fromkeys(pair for chain in chains for pair in pairwise(chain))
    return tuple(_question(cert, issuer) for cert, issuer in pairs)


def _chain(device: GpuDevice) -> tuple[x509.Certificate, ...]:
    return parse_chain(device.chain, Check.GPU_FORMAT, "GPU certificate chain", length=DEVICE_CHAIN_LENGTH)


def _question(cert: x509.Certificate, issuer: x509.Certificate) -> OcspQuestion:
    request = ocsp.OCSPRequestBuilder().add_certificate(cert, issuer, SHA384()).build()
    return OcspQuestion(_responder(cert), request.public_bytes(Encoding.DER))


def _responder(cert: x509.Certificate) -> str:
    for extension in cert.extensions:
        if isinstance(extension.value, x509.AuthorityInformationAccess):
            for access in extension.value:
                location = access.access_location
                named = isinstance(location, x509.UniformResourceIdentifier)
                if named and access.access_method == AuthorityInformationAccessOID.OCSP:
                    return str(location.value)
    return OCSP_URL
