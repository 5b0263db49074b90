"""Reference values over their life: a release comes, ends or is revoked. Each step is a new edition with a higher epoch.

Pure: an edition in, the next one out, `now` an argument. What would mislead a client is refused here, before anybody signs it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from attestation.ear import SigningKey
from attestation.references import (
    References,
    dump_envelope,
    dump_statement,
    parse_envelope,
    parse_statement,
    sign,
)
from attestation.release import Release, Revoked
from attestation.reviewers import signed_by
from image.errors import ImageError

DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """When the next edition is made, and how long it lasts; as long as the one before, unless said."""

    now: int  # Unix seconds
    days: int | None = None

    def of(self, current: References) -> References:
        """`current`, made anew: one epoch later. Releases that have ended stay, so that they are refused by name."""
        lifetime = current.expires - current.issued if self.days is None else self.days * DAY
        if lifetime <= 0:
            raise ImageError("the next edition would have ended already", "Say how long it lasts with --days")
        return replace(
            current,
            epoch=current.epoch + 1,
            issued=self.now,
            expires=self.now + lifetime,
            releases=tuple(
                replace(r, build=None, expected=()) if self.over(r) else r for r in current.releases
            ),
        )

    def over(self, release: Release) -> bool:
        """Whether a release has ended: then nothing of it is needed but what it measures."""
        return release.until is not None and release.until <= self.now


def add(current: References, new: References, edition: Edition, *, overlap: int) -> References:
    """The next edition, with the releases of `new`. Those before end `overlap` seconds from now, or when they would anyway."""
    if new.name != current.name:
        raise ImageError(f"expected releases of {current.name!r}, found those of {new.name!r}")
    following = edition.of(current)
    known = {r.id for r in following.releases} | {r.id for r in following.revoked}
    for release in new.releases:
        if release.id in known:
            raise ImageError(
                f"there is a release {release.id!r} already", "Give each build an id of its own: --id"
            )
        for revoked in following.revoked:
            if same(release, revoked):
                raise ImageError(
                    f"release {release.id!r} measures what {revoked.id!r} did, which is revoked: {revoked.reason}"
                )
    last = edition.now + overlap
    before = tuple(
        replace(r, until=last if r.until is None else min(last, r.until)) for r in following.releases
    )
    return replace(following, releases=(*before, *new.releases))


def retire(current: References, ids: Collection[str], edition: Edition, *, at: int) -> References:
    """The next edition, in which these releases end at `at`, or when they would anyway."""
    following = edition.of(current)
    _known(following, ids)
    ended = tuple(
        replace(r, until=at if r.until is None else min(at, r.until)) if r.id in ids else r
        for r in following.releases
    )
    return replace(following, releases=ended)


def revoke(
    current: References,
    ids: Collection[str],
    reason: str,
    edition: Edition,
    *,
    gone: Sequence[Release] = (),
) -> References:
    """The next edition, in which these releases are refused wherever they run; `gone` has others that there were."""
    if not reason.strip():
        raise ImageError("a revocation has a reason, which people will read")
    following = edition.of(current)
    everything = {r.id: r for r in (*gone, *current.releases)}
    _known(replace(following, releases=tuple(everything.values())), ids)
    denied = [
        everything[name] for name in dict.fromkeys(ids) if name not in {r.id for r in following.revoked}
    ]
    empty = next((r.id for r in denied if not (r.tdx or r.snp or r.vtpm)), None)
    if empty is not None:
        raise ImageError(f"release {empty!r} names no measurement that could be refused")
    left = tuple(r for r in following.releases if r.id not in ids)
    for release in denied:
        for other in left:
            if same(release, other) and not edition.over(other):
                raise ImageError(
                    f"{other.id!r} measures the same as {release.id!r} and would be refused too",
                    "Revoke both, or build the other one anew",
                )
    entries = (Revoked(id=r.id, reason=reason, tdx=r.tdx, snp=r.snp, vtpm=r.vtpm) for r in denied)
    return replace(following, releases=left, revoked=(*following.revoked, *entries))


def statement_of(references: References, *, now: int, before: Sequence[bytes] = ()) -> bytes:
    """What is to be signed of this edition.

    Another edition in the envelopes of `before` must be older and have revoked nothing that is not revoked any more.
    """
    if references.expires <= now:
        raise ImageError("these references have ended", "Make a new edition: `refs add`, `refs retire`")
    payload = dump_statement(references)
    for envelope in before:
        found, _ = parse_envelope(envelope)
        if found != payload:
            _follows(references, parse_statement(found))
    return payload


def sign_edition(
    references: References,
    keys: Sequence[SigningKey],
    *,
    now: int,
    existing: bytes = b"",
    previous: bytes = b"",
) -> bytes:
    """The envelope of this edition. What others have signed in `existing` stays, when it is of this very edition."""
    payload = statement_of(references, now=now, before=[e for e in (existing, previous) if e])
    signatures = list[bytes]()
    if existing and parse_envelope(existing)[0] == payload:
        signatures = parse_envelope(existing)[1]
    for key in keys:
        if not any(signed_by(key.public_key(), signature, payload) for signature in signatures):
            signatures.append(sign(payload, key))
    return dump_envelope(payload, signatures)


def same(one: Release | Revoked, other: Release | Revoked) -> bool:
    """Whether a machine could run both, as far as measurements tell."""
    return bool(
        set(one.tdx) & set(other.tdx) or one.snp & other.snp or set(one.vtpm) & set(other.vtpm),
    )


def _covers(now: Revoked, before: Revoked) -> bool:
    """Whether an entry still refuses all that it refused."""
    kept = set(now.tdx) >= set(before.tdx) and now.snp >= before.snp and set(now.vtpm) >= set(before.vtpm)
    return now.id == before.id and kept


def _known(references: References, ids: Collection[str]) -> None:
    known = [r.id for r in references.releases]
    for name in ids:
        if name not in known:
            raise ImageError(f"no release {name!r}; there are {', '.join(known) or 'none'}")


def _follows(references: References, before: References) -> None:
    if references.name != before.name:
        raise ImageError(f"the previous edition is of {before.name!r}, this one of {references.name!r}")
    if references.epoch <= before.epoch:
        raise ImageError(
            f"epoch {references.epoch} does not rise over {before.epoch} of the previous edition",
            "Clients that have seen that one would refuse this one; make the change with `refs` from the newest edition",
        )
    lost = {r.id for r in before.revoked if not any(_covers(now, r) for now in references.revoked)}
    if lost:
        raise ImageError(
            f"{', '.join(sorted(lost))}: revoked in the previous edition, and not in this one",
            "A revocation stays: a client that skipped an edition must see it too",
        )
