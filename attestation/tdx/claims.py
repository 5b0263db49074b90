"""What a verified TDX quote says. Only `verify` makes these; they are authentic, not yet accepted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from attestation.roots import Root
from attestation.tdx.pck import Platform
from attestation.tdx.quote import TdReport
from attestation.tdx.tcb import Tcb


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """A genuine TD on a genuine platform, as of the time it was verified for."""

    root: Root
    quote_version: int
    td: TdReport
    platform: Platform
    tcb: Tcb
    tcb_evaluation_data_number: int  # the lower one of TCB info and QE identity
    collateral_issued: datetime  # the oldest of TCB info, QE identity and PCK CRL
    collateral_expires: datetime  # the earliest end of anything this rests on
    qe_isv_svn: int
    qe_vendor_id: bytes
    user_data: bytes
    padding: int  # zero bytes after the quote

    @property
    def report_data(self) -> bytes:
        return self.td.report_data

    @property
    def tcb_status(self) -> str:
        return self.tcb.status

    @property
    def advisories(self) -> tuple[str, ...]:
        return self.tcb.advisories
