"""Drop-ins for OpenAI's classes: every resource, one argument more (`policy`), and nothing leaves unverified.

    from client_sdk import OpenAI
    client = OpenAI(base_url="https://enclave:8443/v1", policy="policy.toml", api_key=...)

They are true subclasses, for openai 2.x (httpx) and 3.x (httpx2). Verification fails with an `AttestationError`, at
once and as it is: openai's retries and its `APIConnectionError` are for failures of the network. Only HTTP is attested:
WebSocket connections (Realtime) are refused before they are opened.

What a client gives out has an attribute `attestation`: parsed answers, streams, raw responses. OpenAI's types do not know
it; `attestation_of(answer)` is the same for type checkers.
"""

from __future__ import annotations

import asyncio
import importlib
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import openai

from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from client_sdk.openai_answers import attach
from client_sdk.receipts import Attestation
from client_sdk.refusals import Refused, arrived, as_error_of, may_pass
from client_sdk.session import MAX_AGE
from client_sdk.streams import Verify
from client_sdk.terms import PolicyLike
from client_sdk.transport import (
    DEFAULT_CHANNEL,
    ChannelLike,
    Library,
    Trust,
    VerifyLike,
    async_attested_transport,
    attested_transport,
    check_url,
    check_verify,
)

OpenAIError = openai.OpenAIError
LIBRARY: Library = "httpx2" if int(openai.__version__.partition(".")[0]) >= 3 else "httpx"
_ConnectError: type[Exception] = importlib.import_module(LIBRARY).ConnectError
_NO_WEBSOCKETS = "attested-inference:websockets-are-refused"


@dataclass(slots=True)
class _Request:
    """What one request of a client has seen; of several attempts, the last one's."""

    attestation: Attestation | None = None
    unreached: AttestationError | None = None


_in_request: ContextVar[_Request | None] = ContextVar("_in_request", default=None)


def _carried(error: AttestationError) -> BaseException:
    """What an HTTP client raises for `error`: a failed connection, to be tried again, or what nobody tries again.

    openai 2.x retries every `Exception` of its HTTP client but its own, 3.x those of its HTTP library; both hide them then.
    """
    request = _in_request.get()
    if may_pass(error):
        if request is not None:
            request.unreached = error
        return as_error_of(error, _ConnectError)
    return Refused(error) if request is not None else as_error_of(error, OpenAIError)


def _told(failed: Refused | openai.APIConnectionError, request: _Request) -> BaseException:
    """What to raise: the refusal, or the reason why no connection came about, when it was that the enclave could not be asked."""
    if isinstance(failed, Refused):
        return arrived(failed)
    told = isinstance(failed.__cause__, AttestationError) and request.unreached
    return told or failed


def _noted(response: Any) -> Any:
    request = _in_request.get()
    if request is not None:
        request.attestation = response.extensions["attestation"]
    return response


class AttestedClient(openai.DefaultHttpxClient):
    """The HTTP client of `OpenAI`, for those who want to set more of it; takes what openai's `DefaultHttpxClient` does.

    `transport_options` are those of the library's HTTPTransport: `proxy`, `limits`, `local_address` …
    """

    def __init__(
        self,
        policy: PolicyLike | Trust,
        *,
        channel: ChannelLike = DEFAULT_CHANNEL,
        max_age: timedelta = MAX_AGE,
        verify: VerifyLike = Verify.AS_YOU_READ,
        transport_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        _refuse_other_ways(options)
        inner = {"limits": openai.DEFAULT_CONNECTION_LIMITS, **(transport_options or {})}
        transport: Any = attested_transport(
            policy, LIBRARY, channel=channel, max_age=max_age, verify=verify, **inner
        )
        super().__init__(transport=transport, **options)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return _noted(super().send(*args, **kwargs))
        except AttestationError as error:
            raise _carried(error) from error.__cause__

    def __del__(self) -> None:
        with suppress(Exception):  # as openai's own does: the interpreter may be half gone
            self.close()


class AsyncAttestedClient(openai.DefaultAsyncHttpxClient):
    """The HTTP client of `AsyncOpenAI`; otherwise as `AttestedClient`."""

    def __init__(
        self,
        policy: PolicyLike | Trust,
        *,
        channel: ChannelLike = DEFAULT_CHANNEL,
        max_age: timedelta = MAX_AGE,
        verify: VerifyLike = Verify.AS_YOU_READ,
        transport_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        _refuse_other_ways(options)
        inner = {"limits": openai.DEFAULT_CONNECTION_LIMITS, **(transport_options or {})}
        transport: Any = async_attested_transport(
            policy, LIBRARY, channel=channel, max_age=max_age, verify=verify, **inner
        )
        super().__init__(transport=transport, **options)

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return _noted(await super().send(*args, **kwargs))
        except AttestationError as error:
            raise _carried(error) from error.__cause__

    def __del__(self) -> None:
        with suppress(Exception):
            if not self.is_closed:
                asyncio.get_running_loop().create_task(self.aclose())


def _refuse_other_ways(options: dict[str, Any]) -> None:
    if taken := {"transport", "mounts", "proxy", "cert", "app"} & options.keys():
        raise TypeError(
            f"{', '.join(sorted(taken))}: every request goes through the attested transport; see transport_options"
        )


class _Attested:
    """What both drop-ins share: they have no way to the network but an attested client."""

    if not TYPE_CHECKING:  # to a type checker these are openai's own

        @property
        def websocket_base_url(self):
            raise VerificationError(
                Check.CHANNEL_UNPROTECTED,
                "WebSocket connections are not attested, so none is opened",
                advice="Use the HTTP resources (chat, completions, responses, models)",
            )

        @websocket_base_url.setter
        def websocket_base_url(self, url):
            if url not in {None, _NO_WEBSOCKETS}:
                raise VerificationError(Check.CHANNEL_UNPROTECTED, "WebSocket connections are not attested")

        def copy(self, **changes):
            """A new client with some options changed, over the same attested connections."""
            return super().copy(**{"websocket_base_url": _NO_WEBSOCKETS, **changes})

        with_options = copy


class OpenAI(_Attested, openai.OpenAI):
    """`openai.OpenAI`, for an enclave that `policy` accepts: a path, TOML text or a `Policy`.

    What a stream gives out has one attribute more: `attested` is True when it and all before it were proven when it was
    handed over, and False when it is provisional until a later one is attested or the stream has ended well.
    """

    def __init__(
        self,
        *,
        policy: PolicyLike | Trust | None = None,
        channel: ChannelLike = DEFAULT_CHANNEL,
        max_age: timedelta = MAX_AGE,
        verify: VerifyLike = Verify.AS_YOU_READ,
        http_client: AttestedClient | None = None,
        **options: Any,
    ) -> None:
        _check_source(policy, http_client, AttestedClient, verify)
        if policy is not None:
            http_client = AttestedClient(policy, channel=channel, max_age=max_age, verify=verify)
        super().__init__(http_client=http_client, **options)
        check_url(self.base_url)

    if not TYPE_CHECKING:

        def request(self, *args, **kwargs):
            seen = _Request()
            token = _in_request.set(seen)
            try:
                return attach(super().request(*args, **kwargs), seen.attestation)
            except (Refused, openai.APIConnectionError) as failed:
                error = _told(failed, seen)
            finally:
                _in_request.reset(token)
            raise error from error.__cause__


class AsyncOpenAI(_Attested, openai.AsyncOpenAI):
    """`openai.AsyncOpenAI`, for an enclave that `policy` accepts: a path, TOML text or a `Policy`."""

    def __init__(
        self,
        *,
        policy: PolicyLike | Trust | None = None,
        channel: ChannelLike = DEFAULT_CHANNEL,
        max_age: timedelta = MAX_AGE,
        verify: VerifyLike = Verify.AS_YOU_READ,
        http_client: AsyncAttestedClient | None = None,
        **options: Any,
    ) -> None:
        _check_source(policy, http_client, AsyncAttestedClient, verify)
        if policy is not None:
            http_client = AsyncAttestedClient(policy, channel=channel, max_age=max_age, verify=verify)
        super().__init__(http_client=http_client, **options)
        check_url(self.base_url)

    if not TYPE_CHECKING:

        async def request(self, *args, **kwargs):
            seen = _Request()
            token = _in_request.set(seen)
            try:
                return attach(await super().request(*args, **kwargs), seen.attestation)
            except (Refused, openai.APIConnectionError) as failed:
                error = _told(failed, seen)
            finally:
                _in_request.reset(token)
            raise error from error.__cause__


def _check_source(
    policy: PolicyLike | Trust | None,
    http_client: object,
    kind: type,
    verify: VerifyLike = Verify.AS_YOU_READ,
) -> None:
    check_verify(verify)
    if http_client is not None and verify != Verify.AS_YOU_READ:
        raise TypeError(f"verify= belongs to the {kind.__name__} that is given as http_client=")
    if (policy is None) == (http_client is None):
        raise TypeError(f"give policy=, or an http_client= that has one ({kind.__name__}), and not both")
    if http_client is not None and not isinstance(http_client, kind):
        raise VerificationError(
            Check.CHANNEL_UNPROTECTED,
            f"expected an {kind.__name__} as http_client, found {type(http_client).__name__}",
            advice=f"{kind.__name__}(policy, …) takes the same options and verifies whom it talks to",
        )
