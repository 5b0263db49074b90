"""A vTPM that is real, under a CPU that is simulated: what `tee = "simulated-azure-snp"` gives evidence of.

The attestation key is made in this machine's TPM and stays there, and the TPM quotes its own PCRs, so the evidence says what
really booted. Only the report that vouches for the key is a simulated machine's: no policy accepts it but one that names its root.
"""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation.checks import Check
from attestation.collect.azure import ATTESTATION_KEY, BOOT_LOG, Tools, quoted, with_boot_log
from attestation.errors import UnavailableError
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import jwk, make_hcl_report
from attestation.vtpm import AzureEvidence

TPM = "device:/dev/tpmrm0"  # as tpm2-tools names it
_RESTRICTED_SIGNING_KEY = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


class DevelopmentVtpm:
    """This machine's TPM, vouched for by `machine`."""

    def __init__(
        self, machine: SimulatedSnp, *, seconds: float, tpm: str = TPM, boot_log: Path = BOOT_LOG
    ) -> None:
        self._tools, self._boot_log = Tools({"TPM2TOOLS_TCTI": tpm}, seconds), boot_log
        raw = _runtime_data(self._key())
        self._hcl_report = make_hcl_report(machine.report(sha256(raw).digest().ljust(64, b"\0")), raw)

    def evidence(self, nonce: bytes) -> AzureEvidence:
        """A quote of all PCRs for `nonce`, and the log of the boot where it leads to them."""
        quote, signature, pcrs = quoted(self._tools, nonce)
        made = AzureEvidence(quote=quote, signature=signature, pcrs=pcrs, hcl_report=self._hcl_report)
        return with_boot_log(made, self._boot_log)

    def _key(self) -> rsa.RSAPublicKey:
        """The public half of the TPM's attestation key, which is made at the first start of a machine."""
        with tempfile.TemporaryDirectory() as folder:
            public = Path(folder, "public.pem")
            if not self._has_key():
                self._make_key(Path(folder, "key.ctx"))
            self._tools.run("tpm2_readpublic", "-Q", "-c", ATTESTATION_KEY, "-f", "pem", "-o", str(public))
            key = load_pem_public_key(public.read_bytes())
        if not isinstance(key, rsa.RSAPublicKey):
            raise UnavailableError(
                Check.TEE_COLLECT,
                f"the TPM's key at {ATTESTATION_KEY} is no RSA key",
                advice="It is another program's: use a TPM of its own for a simulated machine",
            )
        return key

    def _has_key(self) -> bool:
        return ATTESTATION_KEY in self._tools.run("tpm2_getcap", "handles-persistent").decode()

    def _make_key(self, context: Path) -> None:
        kind = ("-G", "rsa2048:rsassa-sha256:null", "-g", "sha256", "-a", _RESTRICTED_SIGNING_KEY)
        self._tools.run("tpm2_createprimary", "-Q", "-C", "o", *kind, "-c", str(context))
        self._tools.run("tpm2_evictcontrol", "-Q", "-C", "o", "-c", str(context), ATTESTATION_KEY)
        self._tools.run("tpm2_flushcontext", "-t")


def _runtime_data(key: rsa.RSAPublicKey) -> bytes:
    """As Azure's paravisor has it. There is none here, so nothing vouches for Secure Boot or for a closed console."""
    vm = {"console-enabled": True, "secure-boot": False, "tpm-enabled": True}
    content = {"keys": [jwk(key)], "vm-configuration": vm, "user-data": "00" * 64}
    return json.dumps(content, separators=(",", ":")).encode()
