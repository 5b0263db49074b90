"""A transport for `httpx` and `httpx2`, blocking and async, that talks to attested enclaves and to nothing else.

    client = httpx.Client(transport=attested_transport("policy.toml"))
    answer = client.post("https://enclave:8443/v1/chat/completions", json=...)
    answer.attestation.verdict, answer.attestation.receipt

Every origin is verified against the policy before anything is sent to it. Errors of verification are
`AttestationError`s, which derive from neither library's errors; other failures stay the library's own.
"""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.verdict import Verdict
from client_sdk._bodies import Clock, Http, run
from client_sdk._worlds import Async, Blocking, World
from client_sdk.enclave import Enclave
from client_sdk.kept import KeptSession, fetch_evidence
from client_sdk.receipts import Attestation
from client_sdk.refusals import carried
from client_sdk.sealing import Channel
from client_sdk.session import MAX_AGE, Session, State
from client_sdk.streams import Verify
from client_sdk.terms import PolicyLike, Terms

if TYPE_CHECKING:
    import httpx
    import httpx2

Library = Literal["httpx", "httpx2"]
ChannelLike = Channel | Literal["sealed+pinned", "sealed", "pinned"]
VerifyLike = Verify | Literal["as_you_read", "before_use"]
DEFAULT_CHANNEL = Channel.SEALED_AND_PINNED


def check_url(url: Any) -> str:
    """The origin of a URL of either library. Only https:// leads to an enclave."""
    if url.scheme != "https":
        raise VerificationError(
            Check.CHANNEL_UNPROTECTED,
            f"expected a base URL that begins with https://, found {url.scheme or 'no scheme'}",
            advice="The gateway speaks TLS with a key that is part of its evidence; there is no way around it",
        )
    return f"https://{url.netloc.decode('ascii')}"


def check_verify(verify: VerifyLike) -> Verify:
    """When to give out a stream's events; not what `verify` means to httpx, which has no say here."""
    if verify not in list(Verify):
        raise TypeError(
            f"verify must be one of {[str(v) for v in Verify]}, found {verify!r}: "
            "the attested TLS key decides whom to talk to"
        )
    return Verify(verify)


def _now() -> datetime:
    return datetime.now(UTC)


class Trust:
    """A policy, and the enclaves that were verified under it: shared by every client that is given it as its policy.

    Blocking and async clients, threads, tasks and event loops may share one. Each enclave is attested once for all of
    them, and renewed in the background while any of them is in use.
    """

    def __init__(self, policy: PolicyLike, *, max_age: timedelta = MAX_AGE, clock: Clock = _now) -> None:
        self._terms, self._max_age, self._clock = Terms(policy), max_age, clock
        self._sessions: dict[str, KeptSession] = {}

    @property
    def clock(self) -> Clock:
        return self._clock

    def verify(self, url: str, **options: Any) -> Verdict:
        """The enclave's verdict, valid now; attests unless there is one. `options` are those of httpx's HTTPTransport."""
        httpx = importlib.import_module("httpx")
        origin = check_url(httpx.URL(url))
        return self.session(origin).verdict(lambda nonce: fetch_evidence(httpx, origin, options, nonce))

    def state(self, url: str) -> State:
        """What is known of an enclave, without asking it."""
        return self.session(check_url(importlib.import_module("httpx").URL(url))).state

    def session(self, origin: str) -> KeptSession:
        known = self._sessions.get(origin)
        if known is None:
            session = Session(self._terms.policy(), max_age=self._max_age)
            made = KeptSession(session, self._terms, self._clock)
            known = self._sessions.setdefault(origin, made)  # atomic: threads that race share the first one
        return known


def _trust(policy: PolicyLike | Trust, max_age: timedelta, clock: Clock) -> Trust:
    if not isinstance(policy, Trust):
        return Trust(policy, max_age=max_age, clock=clock)
    if max_age != MAX_AGE or clock is not _now:
        raise TypeError("max_age= and clock= belong to the Trust that is given as the policy")
    return policy


def attestation_of(answer: object) -> Attestation:
    """The attestation of what an attested client gave out: a response, what was parsed from it, a stream, an error status.

    The same as its attribute `attestation`, for type checkers, and for wrappers that keep the response inside.
    """
    for name in ("", "http_response", "response", "_response"):
        found = getattr(getattr(answer, name, None) if name else answer, "attestation", None)
        if isinstance(found, Attestation):
            return found
    raise TypeError(f"no attested client gave out this {type(answer).__name__}")


class _Enclaves:
    """The enclaves behind one transport, by origin."""

    def __init__(
        self,
        world: World,
        trust: Trust,
        channel: ChannelLike,
        options: dict[str, Any],
        verify: VerifyLike,
        raise_as: type[Exception] | None,
    ) -> None:
        if taken := {"cert", "trust_env"} & options.keys():
            raise TypeError(
                f"{', '.join(sorted(taken))} cannot be set: the attested TLS key decides whom to talk to"
            )
        self._verify = check_verify(verify)
        self._world, self._trust, self.raise_as = world, trust, raise_as
        self._channel, self._options = Channel(channel), options
        self._enclaves: dict[str, Enclave] = {}

    def at(self, request: Http) -> Enclave:
        origin = check_url(request.url)
        known = self._enclaves.get(origin)
        if known is not None:
            return known
        session, clock = self._trust.session(origin), self._trust.clock
        made = Enclave(self._world, origin, session, clock, self._channel, self._options, self._verify)
        return self._enclaves.setdefault(origin, made)  # atomic: threads that race share the first one

    async def close(self) -> None:
        for enclave in list(self._enclaves.values()):
            await enclave.close()


class _BlockingTransport:
    def __init__(self, enclaves: _Enclaves) -> None:
        self._enclaves = enclaves

    def handle_request(self, request: Http) -> Http:
        try:
            return run(self._enclaves.at(request).exchange(request))
        except AttestationError as error:
            raise carried(error, self._enclaves.raise_as) from error.__cause__

    def close(self) -> None:
        run(self._enclaves.close())


class _AsyncTransport:
    def __init__(self, enclaves: _Enclaves) -> None:
        self._enclaves = enclaves

    async def handle_async_request(self, request: Http) -> Http:
        try:
            return await self._enclaves.at(request).exchange(request)
        except AttestationError as error:
            raise carried(error, self._enclaves.raise_as) from error.__cause__

    async def aclose(self) -> None:
        await self._enclaves.close()


@overload
def attested_transport(
    policy: PolicyLike | Trust,
    library: Literal["httpx"] = "httpx",
    *,
    channel: ChannelLike = ...,
    max_age: timedelta = ...,
    verify: VerifyLike = ...,
    raise_as: type[Exception] | None = ...,
    clock: Clock = ...,
    **options: Any,
) -> httpx.BaseTransport: ...
@overload
def attested_transport(
    policy: PolicyLike | Trust,
    library: Literal["httpx2"],
    *,
    channel: ChannelLike = ...,
    max_age: timedelta = ...,
    verify: VerifyLike = ...,
    raise_as: type[Exception] | None = ...,
    clock: Clock = ...,
    **options: Any,
) -> httpx2.BaseTransport: ...
def attested_transport(
    policy: PolicyLike | Trust,
    library: Library = "httpx",
    *,
    channel: ChannelLike = DEFAULT_CHANNEL,
    max_age: timedelta = MAX_AGE,
    verify: VerifyLike = Verify.AS_YOU_READ,
    raise_as: type[Exception] | None = None,
    clock: Clock = _now,
    **options: Any,
) -> Any:
    """A transport for `httpx.Client` or `httpx2.Client`. `options` are those of the library's own HTTPTransport.

    Refusals are errors of the class `raise_as` too: for clients that let their own errors through and retry all others.
    """
    http = importlib.import_module(library)
    enclaves = _Enclaves(Blocking(http), _trust(policy, max_age, clock), channel, options, verify, raise_as)
    return _make(_BlockingTransport, http.BaseTransport, enclaves)


@overload
def async_attested_transport(
    policy: PolicyLike | Trust,
    library: Literal["httpx"] = "httpx",
    *,
    channel: ChannelLike = ...,
    max_age: timedelta = ...,
    verify: VerifyLike = ...,
    raise_as: type[Exception] | None = ...,
    clock: Clock = ...,
    **options: Any,
) -> httpx.AsyncBaseTransport: ...
@overload
def async_attested_transport(
    policy: PolicyLike | Trust,
    library: Literal["httpx2"],
    *,
    channel: ChannelLike = ...,
    max_age: timedelta = ...,
    verify: VerifyLike = ...,
    raise_as: type[Exception] | None = ...,
    clock: Clock = ...,
    **options: Any,
) -> httpx2.AsyncBaseTransport: ...
def async_attested_transport(
    policy: PolicyLike | Trust,
    library: Library = "httpx",
    *,
    channel: ChannelLike = DEFAULT_CHANNEL,
    max_age: timedelta = MAX_AGE,
    verify: VerifyLike = Verify.AS_YOU_READ,
    raise_as: type[Exception] | None = None,
    clock: Clock = _now,
    **options: Any,
) -> Any:
    """A transport for `httpx.AsyncClient` or `httpx2.AsyncClient`; otherwise as `attested_transport`."""
    http = importlib.import_module(library)
    enclaves = _Enclaves(Async(http), _trust(policy, max_age, clock), channel, options, verify, raise_as)
    return _make(_AsyncTransport, http.AsyncBaseTransport, enclaves)


def _make(kind: type, base: type, enclaves: _Enclaves) -> Any:
    name = kind.__name__.lstrip("_").replace("BlockingT", "T")
    transport = type(f"Attested{name}", (kind, base), {})
    return transport(enclaves)
