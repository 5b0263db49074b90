"""What openai's clients give out, with its attestation: parsed answers, raw responses, streams and what is read from them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import openai

from client_sdk.receipts import Attestation
from client_sdk.streams import StreamCheck


def attach(answer: Any, attestation: Attestation | None) -> Any:
    """Give an answer its `attestation`, and have what comes out of it marked; what has no attributes stays as it is."""
    if attestation is None:
        return answer
    if not _is_model(type(answer)):  # type: ignore[arg-type]  # a model takes long to say that it lacks an attribute
        if getattr(answer, "attestation", None) is attestation:
            return answer
        _attach_within(answer, attestation)
    with suppress(AttributeError):
        object.__setattr__(answer, "attestation", attestation)  # no field: it is not part of what is dumped
    return answer


def _attach_within(answer: Any, attestation: Attestation) -> None:
    if isinstance(answer, openai.Stream | openai.AsyncStream):
        # openai 2.x and 3.x keep what they iterate over here, and have no public place for it
        marked: Callable[..., Any] = _marked if isinstance(answer, openai.Stream) else _async_marked
        answer._iterator = marked(answer._iterator, attestation)  # noqa: SLF001
    elif hasattr(answer, "http_response"):  # a raw response, in any of openai's classes
        answer.parse = _parsing(answer.parse, attestation)


def _parsing(parse: Callable[..., Any], attestation: Attestation) -> Callable[..., Any]:
    """`parse` of a raw response, whose results are attached to as well."""
    if not inspect.iscoroutinefunction(parse):
        return lambda *args, **kwargs: attach(parse(*args, **kwargs), attestation)

    async def parsed(*args: Any, **kwargs: Any) -> Any:
        return attach(await parse(*args, **kwargs), attestation)

    return parsed


def _marked(items: Iterator[Any], attestation: Attestation) -> Iterator[Any]:
    """Mark each item. Its bytes have been given out, so all bytes being proven means that it is."""
    proof = _proof(attestation)
    for item in items:
        if _is_model(type(item)):  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(item, "attested", proof.attested)  # no field: it is not part of what is dumped
        yield item


async def _async_marked(items: AsyncIterator[Any], attestation: Attestation) -> AsyncIterator[Any]:
    proof = _proof(attestation)
    async for item in items:
        if _is_model(type(item)):  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(item, "attested", proof.attested)
        yield item


def _proof(attestation: Attestation) -> Attestation | StreamCheck:
    """What knows whether all bytes are proven: asked for each event, so of the two the nearer one."""
    return attestation.check if isinstance(attestation.check, StreamCheck) else attestation


@lru_cache(maxsize=256)  # pydantic's classes are slow to tell
def _is_model(kind: type) -> bool:
    return issubclass(kind, openai.BaseModel)
