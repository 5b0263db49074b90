"""What the vendors publish beside this machine's evidence, kept fresh in the background. No answer ever waits for it.

A thread of its own fetches, verifies against this machine's own evidence, and only then staples. What is kept on disk is
public: a boot without a network starts from it for as long as it is in date.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attestation.collateral import Collateral, IntelCollateral
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence
from attestation.fetch import Fetcher, Sources
from attestation.nvidia.verify import verify_all
from attestation.roots import Roots
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.verify import hardware_of, verify_cpu
from attestation.vtpm import AzureEvidence
from enclave_server.log import failure, log
from enclave_server.settings import Settings

_RETRY_SECONDS, _LONGEST_RETRY = 10.0, 600.0  # doubled each time
_SOONEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """This machine's evidence about nothing in particular: it says which collateral is needed, and tries it."""

    cpu: CpuEvidence
    vek: bytes | None = None  # the endorsement certificate that the host hands out, which may be stale
    gpu: bytes = b""
    gpu_nonce: bytes = b""


@dataclass(frozen=True, slots=True)
class CollateralState:
    """How it stands with collateral, for readiness and numbers."""

    unready: str | None = None  # why clients would refuse, by name
    left: float = float("inf")  # seconds until the first of it expires; not a number when there is none
    failing: bool = False  # the last attempt did not succeed, or could not be written down


@dataclass(frozen=True, slots=True)
class _Kept:
    collateral: Collateral
    expires: datetime
    claims: TdxClaims | SnpClaims


class CollateralKeeper:
    """One for each process. `start` begins the work; until it has succeeded once, there is no collateral."""

    def __init__(
        self,
        settings: Settings,
        take_sample: Callable[[], Sample],
        roots: Roots,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._take_sample, self._roots, self._now = settings, take_sample, roots, now
        self._kept: _Kept | None = None
        self._failed: str | None = None
        self._not_kept: str | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin, once. Call it in the process that serves: threads do not survive a fork."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="collateral", daemon=True)
                self._thread.start()

    def refresh(self) -> TdxClaims | SnpClaims:
        """Fetch now, and wait for it: what it says of this machine. Raises what stands in the way."""
        self._kept = kept = self._fetch(offline=self._settings.collateral_offline)
        return kept.claims

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    @property
    def current(self) -> Collateral:
        """What was fetched and verified last; empty before."""
        return self._kept.collateral if self._kept else Collateral()

    @property
    def state(self) -> CollateralState:
        failing = self._failed is not None or self._not_kept is not None
        if self._kept is None:
            return CollateralState("collateral_missing", float("nan"), failing)
        left = (self._kept.expires - self._now()).total_seconds()
        return CollateralState("collateral_expired" if left <= 0 else None, left, failing)

    def _run(self) -> None:
        settings, retry = self._settings, _RETRY_SECONDS
        if settings.collateral_dir is not None and not settings.collateral_offline:
            self._try(offline=True)  # at once: a boot does not wait for a network that may be away
        while True:
            good = self._try(offline=settings.collateral_offline)
            if self._stop.wait(self._until_next() if good else retry):
                return
            retry = _RETRY_SECONDS if good else min(_LONGEST_RETRY, 2 * retry)

    def _until_next(self) -> float:
        """Well before it expires: the refresh time, or half of what is left."""
        return max(min(self._settings.collateral_refresh_seconds, self.state.left / 2), _SOONEST_SECONDS)

    def _try(self, *, offline: bool) -> bool:
        try:
            self._kept = self._fetch(offline=offline)
        except Exception as exc:  # noqa: BLE001 - what is kept stays in use until it expires; the next attempt is near
            self._failed = type(exc).__name__
            words = {"reason": str(exc)} if isinstance(exc, AttestationError) else {}
            log.warning("collateral failed", **failure(exc) | words)
            return False
        self._failed = None
        log.info("collateral fetched", seconds=round(self.state.left))
        return True

    def _fetch(self, *, offline: bool) -> _Kept:
        """Fetched for this machine's own evidence, and accepted by the verifier that clients use."""
        sample, settings = self._take_sample(), self._settings
        folder = settings.collateral_dir
        with (
            _alone(folder if not offline else None),
            Fetcher(
                sources=sources(settings),
                cache=folder,
                offline=offline,
                refresh=timedelta(seconds=settings.collateral_refresh_seconds),
                now=self._now,
            ) as fetcher,
        ):
            kept = self._of_cpu(fetcher, sample)
            if sample.gpu:
                kept = self._with_gpus(fetcher, sample, kept)
            if not offline:
                self._not_kept = fetcher.not_kept
        return kept

    def _of_cpu(self, fetcher: Fetcher, sample: Sample) -> _Kept:
        match sample.cpu:
            case TdxEvidence(quote):
                return self._judged(sample, Collateral(intel=fetcher.intel(quote)))
            case SnpEvidence(report):
                if sample.vek is not None:
                    try:
                        return self._judged(sample, Collateral(amd=fetcher.amd(report, vek=sample.vek)))
                    except (
                        MalformedError,
                        VerificationError,
                    ) as exc:  # hosts keep certificates of an older TCB
                        log.warning("host's certificate refused", reason=str(exc.check))
                return self._judged(sample, Collateral(amd=fetcher.amd(report)))
            case AzureEvidence():
                fetched = fetcher.azure(sample.cpu)
                return self._judged(
                    sample,
                    Collateral(intel=fetched)
                    if isinstance(fetched, IntelCollateral)
                    else Collateral(amd=fetched),
                )

    def _judged(self, sample: Sample, collateral: Collateral) -> _Kept:
        claims = verify_cpu(sample.cpu, collateral, self._roots, self._now())
        return _Kept(collateral, claims.collateral_expires, hardware_of(claims))

    def _with_gpus(self, fetcher: Fetcher, sample: Sample, kept: _Kept) -> _Kept:
        nvidia = fetcher.nvidia(sample.gpu)
        claims = verify_all(sample.gpu, sample.gpu_nonce, nvidia, self._roots, self._now())
        ends = min(kept.expires, *(gpu.collateral_expires for gpu in claims))
        return replace(kept, collateral=replace(kept.collateral, nvidia=nvidia), expires=ends)


def sources(settings: Settings) -> Sources:
    """Where the settings say to ask; the vendors' own services unless they say otherwise."""
    default = Sources.pccs(settings.pccs_url) if settings.pccs_url else Sources()
    return replace(
        default,
        amd=settings.amd_kds_url.rstrip("/"),
        nvidia_rim=settings.nvidia_rim_url.rstrip("/"),
        nvidia_ocsp=settings.nvidia_ocsp_url,
    )


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """One worker fetches, the others then find its answers in the folder: AMD limits how often one may ask."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # nobody can keep anything there, so there is nothing to wait for
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
