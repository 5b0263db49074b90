"""Intel TDX: quotes, Intel's collateral, and what a policy may demand of a TD."""

from attestation.tdx.claims import TdxClaims
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from attestation.tdx.quote import Quote, TdReport, parse_quote
from attestation.tdx.status import TcbStatus
from attestation.tdx.verify import verify

__all__ = [
    "Quote",
    "TcbStatus",
    "TdReport",
    "TdxClaims",
    "TdxMeasurement",
    "TdxPolicy",
    "parse_quote",
    "verify",
]
