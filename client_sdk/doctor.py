"""`attested doctor`: everything between this machine and a verdict, one finding for each step, with what to do.

Each step looks at what the one before it found; after one that failed, those that need it are "not reached". Only the
verdict decides anything: what is found on the way to it was said by whoever answered.
"""

from __future__ import annotations

import os
import platform
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence, parse_evidence
from attestation.fetch import Sources
from attestation.verify import verify
from attestation.vtpm import AzureEvidence
from client_sdk.deadline import Deadline
from client_sdk.installed import installed
from client_sdk.kept import Fetched, fetch_evidence
from client_sdk.outcome import ask
from client_sdk.sealing import Channel
from client_sdk.session import make_nonce
from client_sdk.terms import load_policy
from client_sdk.tls import spki_digest, unpinned_context

if TYPE_CHECKING:
    from attestation.policy import Policy
    from attestation.verdict import Verdict

SECONDS = 10.0
MAX_SKEW = timedelta(minutes=1)  # receipts and sealed requests allow five
CHANNEL_STEP = "the channel"  # the last one: when it holds, a request would leave
T = TypeVar("T")


class Health(StrEnum):
    """What is known of one step."""

    OK = "ok"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One step's outcome, in words."""

    step: str
    health: Health
    found: str
    advice: str = ""
    error: AttestationError | None = None


class _TroubleError(Exception):
    def __init__(self, found: str, advice: str, error: AttestationError | None = None) -> None:
        super().__init__(found)
        self.found, self.advice, self.error = found, advice, error


class _SkippedError(Exception):
    """A step that nobody asked for, or that cannot be taken."""


class Doctor:
    """One examination. Sends an enclave nothing but what `attested verify` sends it."""

    def __init__(
        self, url: str | None, policy: Path | None, channel: Channel, now: datetime, *, vendors: bool
    ) -> None:
        self._text, self._file, self._channel, self._now = url, policy, channel, now
        self._vendors = vendors
        self._url: httpx.URL | None = None
        self._addresses: list[str] = []
        self._policy: Policy | None = None
        self._spki: bytes | None = None
        self._nonce = make_nonce()
        self._fetched: Fetched | None = None
        self._evidence: Evidence | None = None
        self._verdict: Verdict | None = None

    def examine(self) -> Iterator[Finding]:
        """Every finding, as soon as it is there."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("this installation", self._installation),
            ("the policy file", self._read_policy),
            ("the address", self._address),
            ("name resolution", self._resolve),
            ("a connection", self._connect),
            ("TLS", self._handshake),
            ("the gateway is ready", self._ready),
            ("evidence", self._ask_for_evidence),
            ("the clocks agree", self._clocks),
            ("collateral came along", self._collateral),
            ("the verdict", self._judge),
            (CHANNEL_STEP, self._way),
        ]
        if self._vendors:
            steps += [(f"{name} answers", partial(self._reach, url)) for name, url in _services()]
        for step, work in steps:
            yield _finding(step, work)

    def _installation(self) -> str:
        if not ssl.HAS_TLSv1_3:
            raise _TroubleError(f"{ssl.OPENSSL_VERSION} has no TLS 1.3", "Use a Python with a newer OpenSSL")
        return f"{installed()}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"

    def _read_policy(self) -> str:
        if self._file is None:
            raise _SkippedError("no --policy given; `attested lock` makes one")
        self._policy = load_policy(self._file)
        return f"{self._file} is one; `attested policy explain` says what it accepts"

    def _address(self) -> str:
        if self._text is None:
            raise _SkippedError("no URL given")
        advice = "Give the address of the gateway: https://host:port"
        try:
            url = httpx.URL(self._text)
        except httpx.InvalidURL as exc:
            raise _TroubleError(str(exc), advice) from exc
        if url.scheme != "https" or not url.host:
            raise _TroubleError(f"expected https://host:port, found {self._text!r}", advice)
        self._url = url
        return f"{url.host} port {url.port or 443}"

    def _resolve(self) -> str:
        host, port = self._where()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise _TroubleError(
                f"{host}: {exc}", "Compare the name with the operator's; see whether this machine has DNS"
            ) from exc
        self._addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        return ", ".join(self._addresses)

    def _connect(self) -> str:
        _need(self._addresses)
        _, port = self._where()
        causes = []
        for address in self._addresses:
            try:
                socket.create_connection((address, port), SECONDS).close()
            except OSError as exc:
                causes.append(f"{address}: {exc}")
            else:
                return f"{address} accepts connections" + (f" ({'; '.join(causes)})" if causes else "")
        self._addresses = []
        advice = "See whether the gateway runs and a firewall lets its port through"
        if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
            advice += "; HTTPS_PROXY is set and not used, because connections go straight to the enclave"
        raise _TroubleError("; ".join(causes), advice)

    def _handshake(self) -> str:
        _need(self._addresses)
        host, port = self._where()
        try:
            with (
                socket.create_connection((host, port), SECONDS) as plain,
                unpinned_context().wrap_socket(plain, server_hostname=host) as peer,
            ):
                certificate, spoken = peer.getpeercert(binary_form=True), peer.version()
        except OSError as exc:
            self._addresses = []
            advice = "What answers there speaks no TLS 1.3; see whether it is the gateway's port"
            raise _TroubleError(f"{type(exc).__name__}: {exc}", advice) from exc
        self._spki = spki_digest(certificate or b"")
        return f"{spoken}, key {self._spki.hex()[:16]}… (who holds it, the verdict says)"

    def _ready(self) -> str:
        _need(self._spki)
        advice = "The gateway says what it waits for; its log says more"
        try:
            with (
                Deadline(SECONDS) as deadline,
                httpx.Client(verify=unpinned_context(), trust_env=False, timeout=SECONDS) as client,
                client.stream(
                    "GET", f"{self._origin()}/readyz", extensions={"trace": deadline.trace}
                ) as answer,
            ):
                said = next(answer.iter_raw(200), b"").decode("utf-8", "replace")
        except httpx.HTTPError as exc:
            raise _TroubleError(f"{type(exc).__name__}: {exc}", advice) from exc
        if answer.status_code != 200:
            raise _TroubleError(f"status {answer.status_code}: {said}", advice)
        return "/readyz says so"

    def _ask_for_evidence(self) -> str:
        _need(self._spki)
        self._fetched = fetch_evidence(httpx, self._origin(), {}, self._nonce)
        self._evidence = evidence = parse_evidence(self._fetched.document)
        kinds = {
            SnpEvidence: "AMD SEV-SNP",
            TdxEvidence: "Intel TDX",
            AzureEvidence: "an Azure confidential VM",
        }
        cpu = kinds[type(evidence.cpu)]
        gpus = "with evidence of GPUs" if evidence.gpu else "without evidence of GPUs"
        return f"{len(self._fetched.document)} bytes: {cpu}, {gpus}; not judged yet"

    def _clocks(self) -> str:
        fetched = _need(self._fetched)
        if fetched.date is None:
            raise _SkippedError("the answer has no Date")
        skew = self._now - fetched.date
        seconds = abs(skew).total_seconds()
        found = (
            f"this machine is {seconds:.0f} s {'ahead of' if skew > timedelta(0) else 'behind'} the enclave"
        )
        if abs(skew) > MAX_SKEW:
            raise _TroubleError(found, "Set this machine's clock, or have the operator set the enclave's")
        return found

    def _collateral(self) -> str:
        collateral = _need(self._evidence).collateral
        came = [spec.name for spec in fields(collateral) if getattr(collateral, spec.name) is not None]
        if not came:
            raise _TroubleError("none is stapled to the evidence", "Ask the operator to have it stapled")
        return f"stapled: {', '.join(came)}; the verdict says whether it is in date"

    def _judge(self) -> str:
        evidence, policy = _need(self._evidence), _need(self._policy)
        verdict = self._verdict = verify(evidence, policy, nonce=self._nonce, now=self._now)
        simulated = "SIMULATED, which proves nothing about hardware; " if verdict.simulated else ""
        return f"accepted; {simulated}its collateral is good until {verdict.valid_until:%Y-%m-%dT%H:%M:%SZ}"

    def _way(self) -> str:
        verdict, policy = _need(self._verdict), _need(self._policy)
        try:
            ask(self._origin(), policy, self._channel)
        except AttestationError as exc:
            if exc.check is not Check.CHANNEL_TLS_KEY:
                raise
            advice = "Where a balancer ends TLS before the enclave, say --channel sealed; else something is between"
            raise _TroubleError(str(exc), advice, exc) from exc
        own = verdict.statement.keys.tls_spki_sha256 == self._spki
        ends = "TLS ends in the enclave" if own else "TLS ends before the enclave"
        return f"{self._channel}: a request would leave now; {ends}"

    def _reach(self, url: str) -> str:
        try:
            with httpx.Client(timeout=SECONDS) as client:
                status = client.get(url).status_code
        except httpx.HTTPError as exc:
            advice = "Needed only to fetch collateral yourself; an enclave that staples it needs no vendor"
            raise _TroubleError(f"{type(exc).__name__}: {exc}", advice) from exc
        return f"status {status}, so it is there"

    def _where(self) -> tuple[str, int]:
        url = _need(self._url)
        return url.host, url.port or 443

    def _origin(self) -> str:
        return f"https://{_need(self._url).netloc.decode('ascii')}"


def _finding(step: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(step=step, health=Health.OK, found=work())
    except _SkippedError as exc:
        return Finding(step=step, health=Health.NOT_REACHED, found=str(exc))
    except _TroubleError as exc:
        return Finding(step=step, health=Health.FAILED, found=exc.found, advice=exc.advice, error=exc.error)
    except AttestationError as exc:
        found = f"[{exc.check}] {exc.detail}"
        return Finding(step=step, health=Health.FAILED, found=found, advice=exc.advice, error=exc)


def _need(value: T | None) -> T:
    """What an earlier step found; without it this one is not reached."""
    if not value:
        raise _SkippedError("an earlier step has to hold first")
    return value


def _services() -> list[tuple[str, str]]:
    sources = Sources()
    return [
        ("Intel's collateral service", sources.intel_root_crl),
        ("AMD's key service", sources.amd),
        ("NVIDIA's manifest service", sources.nvidia_rim),
    ]
