"""How refusals get past the libraries between here and whoever asked: neither retried nor hidden on their way.

A failure of the network is none, and another try may mend it: such an `UnavailableError` is left to be retried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError

_OF_THE_NETWORK = {Check.EVIDENCE_FETCH, Check.SEALED_MISSING, Check.SEALED_TICKET}
_plain: ContextVar[bool] = ContextVar("_plain", default=False)


class Refused(BaseException):
    """Carries a refusal past every `except Exception` on its way."""

    def __init__(self, error: AttestationError) -> None:
        super().__init__(error)
        self.error = error


def may_pass(error: AttestationError) -> bool:
    """Nothing was decided, since something did not answer: the same request may do better later."""
    return isinstance(error, UnavailableError) and error.check in _OF_THE_NETWORK


@contextmanager
def plain_refusals() -> Iterator[None]:
    """What an attested client refuses within this block leaves the block as it is, at once.

    No `except Exception` in between gets to see it: for libraries that retry or rewrite whatever error they meet. A
    stream has to be read within the block too. What `may_pass` is still theirs to retry.
    """
    token = _plain.set(True)
    try:
        yield
    except Refused as refused:
        raise refused.error from refused.error.__cause__
    finally:
        _plain.reset(token)


def carried(error: AttestationError, kind: type[Exception] | None = None) -> BaseException:
    """What to raise for `error`; where others may retry or hide it, it is also one of `kind`, which they let through."""
    if may_pass(error):
        return error
    return Refused(error) if _plain.get() else as_error_of(error, kind)


def arrived(refused: Refused) -> BaseException:
    """What to raise where it came for: the refusal, unless it has further to go."""
    return refused if _plain.get() else refused.error


def as_error_of(error: AttestationError, kind: type[Exception] | None) -> AttestationError:
    """`error`, also as one of `kind`."""
    if kind is None or isinstance(error, kind):
        return error
    base = type(error)
    both: type[AttestationError] = type(base.__name__, (base, kind), {"__module__": base.__module__})
    made = both.__new__(both, *error.args)
    made.__dict__.update(error.__dict__)
    return made.with_traceback(error.__traceback__)
