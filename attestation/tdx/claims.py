"""What a verified TDX quote says. Only `verify` makes these; they are authentic, not yet accepted."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: bytes in hex, times in RFC 3339, attribute words in hex as well."""
        plain: dict[str, Any] = _plain(self)
        for word in ("td_attributes", "xfam", "seam_attributes"):
            plain["td"][word] = f"{plain['td'][word]:#018x}"
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
