"""Refusals that are errors of another library too, for clients that let their own errors through and retry all others."""

from __future__ import annotations

from attestation.errors import AttestationError, UnavailableError


def as_error_of(error: AttestationError, kind: type[Exception] | None) -> AttestationError:
    """`error`, also as one of `kind`. What another try may mend stays as it is, so that it gets one."""
    if kind is None or isinstance(error, (kind, UnavailableError)):
        return error
    base = type(error)
    both: type[AttestationError] = type(base.__name__, (base, kind), {"__module__": base.__module__})
    made = both.__new__(both, *error.args)
    made.__dict__.update(error.__dict__)
    return made.with_traceback(error.__traceback__)
