"""A simulated Intel and one TDX platform of it: quotes and collateral in the real formats, under a root of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from attestation.collateral import IntelCollateral
from attestation.roots import Root
from attestation.simulator.pki import PrivateKey, load_or_make_key, p256_key, pin
from attestation.simulator.tdx_collateral import encode, qe_identity, tcb_info
from attestation.simulator.tdx_defects import TdxDefect
from attestation.simulator.tdx_pki import ROLES, IntelPki
from attestation.simulator.tdx_quote import DEFAULT_TD, DEFAULT_TD15, make_quote, sign_raw
from attestation.tdx.quote import TdReport

__all__ = ["DEFAULT_TD", "DEFAULT_TD15", "SimulatedTdx", "TdxDefect"]


class SimulatedTdx:
    """One Intel-shaped PKI and one platform. The same keys give the same root, so a policy file can name it."""

    def __init__(self, keys: Mapping[str, PrivateKey]) -> None:
        self._pki = IntelPki(keys)

    @classmethod
    def create(cls) -> SimulatedTdx:
        """New keys, in memory only."""
        return cls({role: p256_key() for role in ROLES})

    @classmethod
    def load_or_create(cls, directory: Path) -> SimulatedTdx:
        """The keys in `directory`, made there when missing, so that several processes share a root."""
        return cls({role: load_or_make_key(directory / f"tdx-{role}.pem", p256_key) for role in ROLES})

    @property
    def root(self) -> Root:
        """The trust anchor to name in a policy."""
        return pin(self._pki.root)

    @property
    def root_der(self) -> bytes:
        return self._pki.root.der

    def quote(
        self,
        report_data: bytes,
        *,
        td: TdReport = DEFAULT_TD,
        version: int = 4,
        defect: TdxDefect | None = None,
    ) -> bytes:
        """A quote over 64 bytes of report data. TD 1.5 reports (`DEFAULT_TD15`) need version 5."""
        if len(report_data) != 64:
            raise ValueError(f"report data has 64 bytes, not {len(report_data)}")
        chain = self._pki.pck_chain(defect)
        keys = self._pki.keys
        return make_quote(
            replace(td, report_data=report_data),
            version=version,
            chain="".join(signer.pem for signer in chain).encode(),
            pck_key=chain[0].key,
            attestation_key=keys["attestation"],
            stranger=keys["stranger"],
            defect=defect,
        )

    def collateral(
        self,
        now: datetime,
        *,
        defect: TdxDefect | None = None,
        info: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> IntelCollateral:
        """Everything needed to judge a quote at `now`; `info` and `identity` replace the documents to sign."""
        pki = self._pki
        signing = pki.signing_chain(defect)
        signing_pem = "".join(signer.pem for signer in signing)
        info_text = encode(dict(info or tcb_info(now, defect)))
        identity_text = encode(dict(identity or qe_identity(now, defect)))
        if defect is TdxDefect.TCB_INFO_NO_JSON:
            info_text = info_text[:-1]
        info_signature, identity_signature = (
            sign_raw(signing[0].key, t.encode()) for t in (info_text, identity_text)
        )
        if defect is TdxDefect.TCB_INFO_CHANGED:
            info_text = info_text.replace("OutOfDate", "UpToDate")
        if defect is TdxDefect.QE_IDENTITY_CHANGED:
            identity_text = identity_text.replace("OutOfDate", "UpToDate")
        return IntelCollateral(
            pck_crl_issuer_chain=pki.platform_ca.pem + pki.root.pem,
            root_ca_crl=pki.root_crl(now, defect),
            pck_crl=pki.pck_crl(now, defect),
            tcb_info_issuer_chain=signing_pem,
            tcb_info=info_text,
            tcb_info_signature=info_signature,
            qe_identity_issuer_chain=signing_pem,
            qe_identity=identity_text,
            qe_identity_signature=identity_signature,
        )
