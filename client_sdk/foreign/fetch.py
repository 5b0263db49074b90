"""Other providers' evidence, asked for where they publish it, and the certificate at the end of the connection.

What comes back is untrusted and proves itself or does not; so TLS is spoken with whoever answers, as for our own evidence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.fetch import Fetcher
from attestation.nvidia.collateral import NvidiaCollateral
from client_sdk.deadline import Deadline
from client_sdk.foreign.document import MAX_DOCUMENT_BYTES, Foreign, Seen
from client_sdk.foreign.formats import NITRIDING_NONCE_BYTES, recognise
from client_sdk.tls import unpinned_context

OWN_PATH = "/.well-known/attestation"
OWN_TYPE = "application/cmw+json"
_TIMEOUT_S = 30.0
ASK_SECONDS = 120.0  # for every place that is asked, however slowly answers come


class Provider(StrEnum):
    """Whose format to ask for; `auto` asks for each in this order."""

    AUTO = "auto"
    TINFOIL = "tinfoil"
    DSTACK = "dstack"
    NITRIDING = "nitriding"
    RA_TLS = "ra-tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a format is published, how long its nonces are (0: it has none), and what else to ask with."""

    path: str
    nonce_bytes: int = 0
    query: tuple[tuple[str, str], ...] = ()


#: In the order in which `auto` tries them.
PLACES = {
    Provider.TINFOIL: Place(path="/.well-known/tinfoil-attestation", nonce_bytes=32),
    Provider.DSTACK: Place(
        path="/v1/attestation/report", nonce_bytes=32, query=(("include_tls_fingerprint", "true"),)
    ),
    Provider.NITRIDING: Place(path="/enclave/attestation", nonce_bytes=NITRIDING_NONCE_BYTES),
    Provider.RA_TLS: Place(path="/"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was found: every machine's evidence, and what the asker knows."""

    provider: Provider
    machines: tuple[Foreign, ...]
    seen: Seen


class OurOwn(Exception):  # noqa: N818  # not a failure: the address is one of ours
    """A gateway of this project answers there."""


def ask(url: str, provider: Provider = Provider.AUTO) -> Published:
    """The evidence that is published at `url`. A path in it stands in place of the format's own."""
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise UnavailableError(Check.FOREIGN_FETCH, f"{url}: {exc}") from exc
    with (
        Deadline(ASK_SECONDS) as deadline,
        httpx.Client(verify=unpinned_context(), timeout=_TIMEOUT_S, trust_env=False) as http,
    ):
        client = _Client(http, {"trace": deadline.trace})
        try:
            if provider is not Provider.AUTO:
                return _ask_one(client, base, provider)
            _refuse_our_own(client, base)
            return _ask_each(client, base)
        except AttestationError as exc:
            if not deadline.passed:
                raise
            detail = f"{base}: not all of it came within {ASK_SECONDS:.0f} s"
            raise UnavailableError(Check.FOREIGN_FETCH, detail) from exc


@dataclass(frozen=True, slots=True)
class _Client:
    """What asks, and by when it has to have its answers."""

    http: httpx.Client
    extensions: Mapping[str, Any]


def _ask_each(client: _Client, base: httpx.URL) -> Published:
    """The first format that is there. Pages that are something else are passed by, and told of when nothing is found."""
    failures: list[AttestationError] = []
    for provider in PLACES:
        try:
            return _ask_one(client, base, provider)
        except AttestationError as exc:
            failures.append(exc)
    for failure in failures[:-1]:  # the last one is about the certificate, which every server has
        if isinstance(failure, MalformedError):
            raise failure
    raise UnavailableError(
        Check.FOREIGN_FETCH,
        f"{base}: no evidence at {', '.join(place.path for place in PLACES.values() if place.nonce_bytes)}, "
        "and none in the certificate",
        advice="Name the format with --provider, and the whole address where it is published",
    )


def _ask_one(client: _Client, base: httpx.URL, provider: Provider) -> Published:
    place = PLACES[provider]
    nonce = os.urandom(place.nonce_bytes) if place.nonce_bytes else None
    named = base.path not in {"", "/"}
    query = dict(base.params) | dict(place.query) | ({"nonce": nonce.hex()} if nonce else {})
    where = base.copy_with(path=base.path if named else place.path, query=None, fragment=None)
    wanted = provider is not Provider.RA_TLS
    body, certificate = _get(client, where.copy_merge_params(query), wanted=wanted)
    if not wanted:
        if certificate is None:
            raise UnavailableError(Check.FOREIGN_FETCH, f"{base}: not TLS, so there is no certificate")
        body = certificate
    return Published(
        provider=provider, machines=recognise(body), seen=Seen(nonce=nonce, certificate=certificate)
    )


def _get(client: _Client, url: httpx.URL, *, wanted: bool) -> tuple[bytes, bytes | None]:
    """The answer and the peer's certificate. Of an answer that is not wanted, only the latter."""
    try:
        with client.http.stream(
            "GET", url, headers={"accept-encoding": "identity"}, extensions=client.extensions
        ) as response:
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            certificate = None if tls is None else tls.getpeercert(True)
            if not wanted:
                return b"", certificate
            if response.status_code != httpx.codes.OK:
                raise UnavailableError(Check.FOREIGN_FETCH, f"{url}: status {response.status_code}")
            body = bytearray()
            for part in response.iter_raw():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise MalformedError(
                        Check.FOREIGN_FORMAT, f"{url}: larger than {MAX_DOCUMENT_BYTES} bytes"
                    )
            return bytes(body), certificate
    except httpx.HTTPError as exc:
        raise _unreached(url, exc) from exc


def _unreached(url: httpx.URL, exc: httpx.HTTPError) -> UnavailableError:
    return UnavailableError(
        Check.FOREIGN_FETCH,
        f"{url}: {type(exc).__name__}: {exc}",
        advice="See whether the address is right and can be reached from here; no proxy of the environment is used",
    )


def _refuse_our_own(client: _Client, base: httpx.URL) -> None:
    where = base.copy_with(path=OWN_PATH, query=None, fragment=None)
    try:
        with client.http.stream("GET", where, extensions=client.extensions) as response:
            if response.headers.get("content-type", "").startswith(OWN_TYPE):
                raise OurOwn
    except httpx.HTTPError as exc:
        raise _unreached(where, exc) from exc


def supply(
    foreign: Foreign,
    fetcher: Fetcher | None,
    *,
    cpu: IntelCollateral | AmdCollateral | None = None,
    gpus: NvidiaCollateral | None = None,
) -> Collateral:
    """Collateral for one document: what was given, what came along, and the rest from the vendors."""
    intel = cpu if isinstance(cpu, IntelCollateral) else None
    amd = cpu if isinstance(cpu, AmdCollateral) else foreign.amd
    if fetcher is not None:
        if isinstance(foreign.cpu, TdxEvidence) and intel is None:
            intel = fetcher.intel(foreign.cpu.quote)
        if isinstance(foreign.cpu, SnpEvidence) and amd is None:
            amd = fetcher.amd(foreign.cpu.report)
        if foreign.gpus and gpus is None:
            gpus = fetcher.nvidia(foreign.gpus)
    return Collateral(intel=intel, amd=amd, nvidia=gpus)
