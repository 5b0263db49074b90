"""Who must have signed reference values: `k` of `n` reviewers, each by a key or by an identity that Sigstore vouches for.

Files are arguments: whoever reads the policy reads the files that it names (`ReferencesPolicy.files`), and nothing here
opens one. A reviewer whose signature does not hold is as one who has not signed; the message says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from attestation.checks import Check
from attestation.dsse import pae
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.keyless import verify_bundle
from attestation.minisign import MinisignKey, parse_key, verify_minisign
from attestation.references import References, parse_envelope, parse_statement

_NO_FILES: Mapping[str, bytes] = MappingProxyType({})
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Somebody whose signature counts: by a key, or by an identity at an issuer under a pinned Sigstore root."""

    name: str
    key: str | None = None  # a PEM public key, Ed25519 or P-256, or a public key of minisign's
    signature: str | None = (
        None  # file with minisign's signature, beside the policy; FILE.minisig, unless said
    )
    identity: str | None = None  # as in the certificate: an e-mail address, or a workflow's URI
    issuer: str | None = None  # who has seen proof of it
    trusted_root: str | None = None  # file with the root of that Sigstore instance, beside the policy
    bundle: str | None = (
        None  # file with the signature, beside the policy; the references themselves, unless said
    )

    @property
    def who(self) -> tuple[object, ...]:
        """What tells one reviewer from another: the key itself, however its PEM is written, or the identity."""
        if self.key is None:
            return (self.identity, self.issuer)
        return (self.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),)

    def check(self) -> None:
        """Either a key, or all of identity, issuer and root."""
        keyless = (self.identity, self.issuer, self.trusted_root)
        if self.key is not None and not any((*keyless, self.bundle)):
            self.public_key()
            if self.signature is not None and self.minisign_key() is None:
                raise MalformedError(
                    Check.POLICY_FORMAT,
                    f"references.reviewers: {self.name!r} names a signature's file, which only a minisign key has",
                )
        elif self.key is not None or self.signature is not None or not all(keyless):
            raise MalformedError(
                Check.POLICY_FORMAT,
                f"references.reviewers: {self.name!r} needs a key, or identity, issuer and trusted_root together",
            )

    def minisign_key(self) -> MinisignKey | None:
        """The key with its id, where it is one of minisign's."""
        try:
            return parse_key(self.key or "")
        except MalformedError:
            return None

    def public_key(self) -> PublicKey:
        if (minisign := self.minisign_key()) is not None:
            return minisign.key
        try:
            key = load_pem_public_key((self.key or "").encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if isinstance(key, Ed25519PublicKey):
            return key
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            return key
        raise MalformedError(
            Check.POLICY_FORMAT,
            f"references.reviewers: {self.name!r} has no Ed25519 or P-256 public key in PEM, and none of minisign's",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencesPolicy:
    """`[references]` of a policy file: where signed reference values are, and who must have signed them."""

    file: str  # beside the policy file
    name: str
    reviewers: tuple[Reviewer, ...]
    threshold: int | None = None  # how many of them; all, unless said
    min_epoch: int = 0

    @property
    def files(self) -> frozenset[str]:
        """The other files that `verify` wants to see, by the names that the policy has for them."""
        named = {name for r in self.reviewers for name in (r.trusted_root, r.bundle, self._minisig(r))}
        return frozenset(name for name in named if name is not None)

    def _minisig(self, reviewer: Reviewer) -> str | None:
        """Where this reviewer's signature is, if it is one of minisign's."""
        return None if reviewer.minisign_key() is None else reviewer.signature or f"{self.file}.minisig"

    def verify(self, envelope: bytes, files: Mapping[str, bytes] = _NO_FILES) -> References:
        """The references in `envelope`, signed by enough reviewers, under this name and not of an older epoch."""
        return self.reviewed(envelope, files)[0]

    def reviewed(
        self, envelope: bytes, files: Mapping[str, bytes] = _NO_FILES
    ) -> tuple[References, tuple[str, ...]]:
        """What `verify` gives, and the names of the reviewers whose signatures of it hold."""
        payload, signatures = parse_envelope(envelope)
        signers = self._verify_signatures(payload, signatures, {self.file: envelope, **files})
        found = parse_statement(payload)
        if found.name != self.name:
            raise VerificationError(
                Check.REFERENCES_NAME, f"expected references for {self.name!r}, found them for {found.name!r}"
            )
        if found.epoch < self.min_epoch:
            raise VerificationError(
                Check.REFERENCES_EPOCH,
                f"expected epoch {self.min_epoch} or later, found {found.epoch}",
                advice="These references are older than those seen before; get the newest ones from their publisher",
            )
        return found, signers

    def _verify_signatures(
        self, payload: bytes, signatures: Sequence[bytes], files: Mapping[str, bytes]
    ) -> tuple[str, ...]:
        wanted = self._wanted()
        signed: list[str] = []
        why: list[str] = []
        for reviewer in self.reviewers:
            try:
                if (minisign := reviewer.minisign_key()) is not None:
                    _verify_minisign(minisign, self._minisig(reviewer) or "", payload, files)
                elif reviewer.key is not None:
                    _verify_key(reviewer.public_key(), signatures, payload)
                else:
                    _verify_identity(reviewer, payload, files, self.file)
                signed.append(reviewer.name)
            except VerificationError as exc:
                why.append(f"{reviewer.name}: {exc.detail}")
        if len(signed) < wanted:
            raise VerificationError(
                Check.REFERENCES_SIGNATURE,
                f"expected signatures of {wanted} of {', '.join(r.name for r in self.reviewers)}; "
                f"found those of {', '.join(signed) or 'nobody'} ({'; '.join(why)})",
                advice="The reference values were altered, or are not reviewed yet; do not use them",
            )
        return tuple(signed)

    def _wanted(self) -> int:
        """How many signatures, once it is sure that the reviewers are so many."""
        for reviewer in self.reviewers:
            reviewer.check()
        count = len(self.reviewers)
        if len({r.name for r in self.reviewers}) != count or len({r.who for r in self.reviewers}) != count:
            raise MalformedError(
                Check.POLICY_FORMAT, "[references] names a reviewer, a key or an identity twice"
            )
        wanted = count if self.threshold is None else self.threshold
        if not 1 <= wanted <= count:
            raise MalformedError(
                Check.POLICY_FORMAT, f"[references] wants {wanted} signatures of {count} reviewers"
            )
        return wanted


def _verify_key(key: PublicKey, signatures: Sequence[bytes], payload: bytes) -> None:
    """One of the signatures over exactly this payload is this key's."""
    if not any(signed_by(key, signature, payload) for signature in signatures):
        raise VerificationError(Check.REFERENCES_SIGNATURE, "no signature by this key")


def _verify_minisign(key: MinisignKey, name: str, payload: bytes, files: Mapping[str, bytes]) -> None:
    """The file has this key's signature over exactly this payload."""
    if (signature := files.get(name)) is None:
        raise VerificationError(Check.REFERENCES_SIGNATURE, f"no signature {name!r}")
    try:
        verify_minisign(signature, key, payload)
    except MalformedError as exc:
        raise VerificationError(Check.REFERENCES_SIGNATURE, exc.detail) from exc


def _verify_identity(reviewer: Reviewer, payload: bytes, files: Mapping[str, bytes], main: str) -> None:
    """The bundle is this identity's, and about exactly this payload."""
    root, bundle = files.get(reviewer.trusted_root or ""), files.get(reviewer.bundle or main)
    if root is None:
        raise UnavailableError(
            Check.REFERENCES_MISSING,
            f"the trusted root {reviewer.trusted_root!r} was not read",
            advice="Put it beside the policy",
        )
    if bundle is None:
        raise VerificationError(Check.REFERENCES_KEYLESS, f"no bundle {reviewer.bundle!r}")
    found = verify_bundle(bundle, root, identity=reviewer.identity or "", issuer=reviewer.issuer or "")
    if found != payload:
        raise VerificationError(Check.REFERENCES_KEYLESS, "the bundle is about another statement")


def signed_by(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    """Whether the signature over an envelope's payload is this key's."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, pae(payload))
        else:
            key.verify(signature, pae(payload), ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
