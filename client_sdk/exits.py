"""How the command line ends: one exit code for each branch of the error tree, and one of its own for wrong usage."""

from __future__ import annotations

from enum import IntEnum

from attestation.errors import AttestationError, MalformedError, PolicyError, VerificationError


class ExitCode(IntEnum):
    """What a script may rely on."""

    ACCEPT = 0
    DIFFERS = 1  # of commands that compare and decide nothing
    MALFORMED = 2
    NOT_AUTHENTIC = 3
    POLICY = 4
    UNDECIDED = 5
    USAGE = 64  # EX_USAGE: 2, which command lines use by custom, is taken


def exit_code(error: AttestationError | None) -> ExitCode:
    """The code for an outcome; None is acceptance."""
    match error:
        case None:
            return ExitCode.ACCEPT
        case MalformedError():
            return ExitCode.MALFORMED
        case VerificationError():
            return ExitCode.NOT_AUTHENTIC
        case PolicyError():
            return ExitCode.POLICY
    return ExitCode.UNDECIDED
