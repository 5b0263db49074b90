"""What `dcap-qvl`, an independent verifier, says of the same evidence: the second opinion, never the judge."""

from __future__ import annotations

from datetime import datetime

import dcap_qvl

from attestation.collateral import IntelCollateral

REFUSED = "refused"


def ask(
    quote: bytes, collateral: IntelCollateral, now: datetime, root_der: bytes | None = None
) -> tuple[str, tuple[str, ...]]:
    """Its TCB status and advisories, or REFUSED and nothing."""
    theirs = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json().decode())
    seconds = int(now.timestamp())
    try:
        if root_der is None:
            report = dcap_qvl.verify(quote, theirs, seconds)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, theirs, root_der, seconds)
    except ValueError:
        return REFUSED, ()
    return str(report.status), tuple(sorted(set(report.advisory_ids)))
