"""What collectors raise."""

from __future__ import annotations

import errno
import os

from attestation.checks import Check
from attestation.errors import UnavailableError

_ADVICE = {
    errno.EACCES: "Let the gateway's user open it",
    errno.EPERM: "Let the gateway's user open it",
    errno.ENXIO: "No TEE has registered: load tdx_guest or sev-guest, and start the VM as a confidential one",
    errno.ENODEV: "No TEE has registered: load tdx_guest or sev-guest, and start the VM as a confidential one",
    errno.EBUSY: "The host's quoting service is busy; is another quote under way?",
    errno.ETIMEDOUT: "The host's quoting service does not answer: ask the host's operator to look at it",
    errno.EIO: "The host refused; its log says why",
}


def unavailable(detail: str, advice: str = "") -> UnavailableError:
    return UnavailableError(Check.TEE_COLLECT, detail, advice=advice)


def failed(what: str, error: OSError, advice: str = "") -> UnavailableError:
    """An error of the kernel, with its name and what helps."""
    name = errno.errorcode.get(error.errno or 0, "error")
    words = os.strerror(error.errno) if error.errno else str(error)
    return unavailable(f"{what}: {name} ({words})", advice or _ADVICE.get(error.errno or 0, ""))
