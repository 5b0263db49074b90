"""What an HTTP client reads of an answer: verified events, or the body inside a seal; blocking and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from typing import Any, TypeVar

from attestation.errors import AttestationError, VerificationError
from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import ResponseHead
from client_sdk.refusals import carried
from client_sdk.streams import StreamCheck

Http = Any  # requests, responses and transports of either library
Clock = Callable[[], datetime]
Done = Callable[[], Coroutine[Any, Any, None]]  # tells that an answer was read or given up; called once
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, because everything it awaits is blocking."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a blocking operation was suspended")


async def _nothing() -> None:
    """For a stream that is closed a second time."""


class _Stream:
    """The body of a streamed answer: verified events, or an error. Closing it gives its connection back."""

    def __init__(
        self,
        stream: Http,
        check: StreamCheck,
        clock: Clock,
        done: Done,
        broken: tuple[type[Exception], ...],
    ) -> None:
        self._stream, self._check, self._clock, self._done, self._broken = stream, check, clock, done, broken

    def _finished(self) -> Done:
        done, self._done = self._done, _nothing
        return done

    def _cut(self, exc: Exception) -> VerificationError:
        return self._check.truncated(f"the connection broke ({type(exc).__name__}: {exc})")


class BlockingStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._stream:
                if self._check.passes(data):
                    yield data
                    continue
                for events in self._check.feed(data, self._clock()):
                    yield events
            if events := self._check.finish(self._clock()):
                yield events
            self._check.conclude()
        except self._broken as exc:
            raise carried(self._cut(exc)) from exc
        except AttestationError as error:
            raise carried(error) from error.__cause__

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            run(self._finished()())


class AsyncStream(_Stream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._stream:
                if self._check.passes(data):
                    yield data
                    continue
                for events in self._check.feed(data, self._clock()):
                    yield events
            if events := self._check.finish(self._clock()):
                yield events
            self._check.conclude()
        except self._broken as exc:
            raise carried(self._cut(exc)) from exc
        except AttestationError as error:
            raise carried(error) from error.__cause__

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._finished()()


class _Unsealed:
    """The body inside a sealed answer. `begin` reads until the head is there, which is one chunk."""

    def __init__(self, stream: Http, opener: AnswerOpener) -> None:
        self._stream, self._opener = stream, opener
        self._begun = b""

    def _taken(self) -> bytes:
        """Once: openai 3.x reads what is left of a stream by iterating over it again."""
        begun, self._begun = self._begun, b""
        return begun


class BlockingUnsealed(_Unsealed):
    def begin(self) -> ResponseHead:
        self._reads = iter(self._stream)
        for data in self._reads:
            self._begun += self._opener.feed(data)
            if self._opener.head is not None:
                return self._opener.head
        raise self._opener.truncated()

    def __iter__(self) -> Iterator[bytes]:
        if begun := self._taken():
            yield begun
        yield from filter(None, map(self._opener.feed, self._reads))
        self._opener.end()

    def close(self) -> None:
        self._stream.close()


class AsyncUnsealed(_Unsealed):
    async def begin(self) -> ResponseHead:
        self._reads = aiter(self._stream)
        async for data in self._reads:
            self._begun += self._opener.feed(data)
            if self._opener.head is not None:
                return self._opener.head
        raise self._opener.truncated()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if begun := self._taken():
            yield begun
        async for data in self._reads:
            if opened := self._opener.feed(data):
                yield opened
        self._opener.end()

    async def aclose(self) -> None:
        try:
            await self._reads.aclose()
        finally:
            await self._stream.aclose()
