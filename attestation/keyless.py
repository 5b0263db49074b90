"""A Sigstore bundle as a reviewer's signature: an identity that somebody proved to an issuer, in place of a key.

Verified from files alone, against a trusted root that the caller pins: the certificate chains to its authority and was
logged (SCT), names this identity as this issuer saw it, was valid when the signature was logged (a signed time), and the
signature is in the log (inclusion proof under a signed checkpoint). Nothing is fetched; `sigstore` does the
cryptography and is an extra (`pip install 'attested-inference[sigstore]'`).
"""

from __future__ import annotations

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError

MAX_BUNDLE_BYTES = 8 * 1024 * 1024
_DSSE_TYPE = "application/vnd.in-toto+json"


def verify_bundle(bundle: bytes, trusted_root: bytes, *, identity: str, issuer: str) -> bytes:
    """The payload that `identity`, as `issuer` knows it, has signed.

    What is no bundle or no trusted root is malformed; a bundle that does not prove this is not authentic.
    """
    try:
        from sigstore.errors import Error  # noqa: PLC0415 - an extra, and half a second to load
        from sigstore.models import Bundle, TrustedRoot  # noqa: PLC0415
        from sigstore.verify import Verifier  # noqa: PLC0415
        from sigstore.verify.policy import Identity  # noqa: PLC0415
        from sigstore_models.trustroot.v1 import TrustedRoot as RootFile  # noqa: PLC0415
    except ImportError as exc:
        raise UnavailableError(
            Check.REFERENCES_KEYLESS,
            f"the policy names a Sigstore identity, {identity!r}, and {exc.name} is not installed",
            advice="pip install 'attested-inference[sigstore]'",
        ) from exc
    for data, what in ((bundle, "bundle"), (trusted_root, "trusted root")):
        if len(data) > MAX_BUNDLE_BYTES:
            raise MalformedError(Check.REFERENCES_FORMAT, f"Sigstore {what}: over {MAX_BUNDLE_BYTES} bytes")
    try:
        parsed, verifier = (
            Bundle.from_json(bundle),
            Verifier(trusted_root=TrustedRoot(RootFile.from_json(trusted_root))),
        )
    except Exception as exc:
        raise MalformedError(
            Check.REFERENCES_FORMAT, f"no Sigstore bundle, or no trusted root: {_short(exc)}"
        ) from exc
    try:
        kind, payload = verifier.verify_dsse(parsed, Identity(identity=identity, issuer=issuer))
    except Error as exc:
        raise VerificationError(Check.REFERENCES_KEYLESS, _short(exc)) from exc
    except Exception as exc:
        raise VerificationError(
            Check.REFERENCES_KEYLESS, f"{type(exc).__name__} in the bundle: {_short(exc)}"
        ) from exc
    if kind != _DSSE_TYPE:
        raise VerificationError(Check.REFERENCES_KEYLESS, f"expected a payload of {_DSSE_TYPE}, found {kind}")
    return payload


def _short(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
