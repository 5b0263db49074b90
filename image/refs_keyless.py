"""Sign reference values as an identity that Sigstore vouches for, such as a release workflow: no key is kept anywhere.

This talks to a Sigstore instance: its authority gives a certificate for a few minutes, and its log keeps the signature for
all to see, with the identity. `sigstore` is an extra.
"""

from __future__ import annotations

from image.errors import ImageError


def sign_keyless(payload: bytes, *, token: str | None, instance: bytes | None) -> bytes:
    """A Sigstore bundle around a statement, signed as whom `token` names; as the workflow that this runs in without one.

    `instance` is the client trust configuration of a Sigstore instance; the public one unless given.
    """
    try:
        from sigstore.dsse import Statement  # noqa: PLC0415 - an extra
        from sigstore.models import ClientTrustConfig  # noqa: PLC0415
        from sigstore.oidc import IdentityToken, detect_credential  # noqa: PLC0415
        from sigstore.sign import SigningContext  # noqa: PLC0415
    except ImportError as exc:
        raise ImageError(
            f"signing as an identity needs {exc.name}", "pip install 'attested-inference[sigstore]'"
        ) from exc
    try:
        config = (
            ClientTrustConfig.production()
            if instance is None
            else ClientTrustConfig.from_json(instance.decode())
        )
        given = detect_credential() if token is None else token
        if given is None:
            raise ImageError(
                "there is no identity to sign as: this runs in no workflow that has one",
                "Give an OpenID Connect token with --token",
            )
        with SigningContext.from_trust_config(config).signer(IdentityToken(given)) as signer:
            return signer.sign_dsse(Statement(payload)).to_json().encode()
    except ImageError:
        raise
    except Exception as exc:  # a network, a token, a service: whatever it is, nothing was signed
        raise ImageError(
            f"Sigstore did not sign: {type(exc).__name__}: {str(exc) or 'no reason given'}"
        ) from exc
