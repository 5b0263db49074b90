"""What may have been measured at boot. Strict unless said: every loosening is a field named any_….

Digests are judged, not labels: each event must have a digest that this policy names, or mean the same on every
machine (a separator, an EFI action). A field `any_…` trusts the log's label for that kind of event, and a host
writes the labels: name everything, or pin the register itself in the hardware's policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from attestation.checks import Check
from attestation.errors import Violation
from attestation.measure.claims import EventLogClaims, Role
from attestation.measure.dstack import DstackClaims
from attestation.measure.eventlog import Algorithm
from attestation.measure.replay import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLogPolicy:
    """Digests are of the log's algorithm (SHA-384 for RTMRs). An empty list accepts nothing."""

    kernels: frozenset[bytes] = (
        frozenset()
    )  # every EFI application: shim, boot loader, kernel, UKI (Authenticode)
    any_kernel: bool = False
    initrds: frozenset[bytes] = frozenset()
    any_initrd: bool = False
    command_lines: frozenset[str] = frozenset()  # exact, with what firmware or boot loader put around it
    any_command_line: bool = False
    other_events: frozenset[bytes] = frozenset()  # whatever else may be measured, in any register
    any_firmware_event: bool = False  # ACPI tables, variables, Secure Boot keys: RTMR0; PCR 0 to 3, 6 and 7
    any_other_event: bool = False
    any_runtime_event: bool = False  # RTMR3, but dstack's own events
    # dstack: the event's payload
    compose_hashes: frozenset[bytes] = frozenset()
    any_compose_hash: bool = False
    app_ids: frozenset[bytes] = frozenset()
    any_app_id: bool = False
    key_providers: frozenset[str] = frozenset()
    any_key_provider: bool = False

    def check(self, claims: EventLogClaims) -> list[Violation]:
        """Every reason not to accept `claims`; an empty list when there is none."""
        return [*self._check_boot(claims), *self._check_events(claims), *self._check_dstack(claims)]

    def _check_boot(self, claims: EventLogClaims) -> Iterator[Violation]:
        lines, known = self._lines(claims), self._known(claims)
        for check, role, listed, any_of_role in (
            (Check.EVENTLOG_KERNEL, Role.KERNEL, self.kernels, self.any_kernel),
            (Check.EVENTLOG_INITRD, Role.INITRD, self.initrds, self.any_initrd),
            (Check.EVENTLOG_COMMAND_LINE, Role.COMMAND_LINE, lines, self.any_command_line),
        ):
            found = claims.digests(role)
            measured = any(e.digest in listed for e in claims.events)  # under whatever label
            if not any_of_role and not (measured and known.issuperset(found)):
                accepted = self.command_lines if role is Role.COMMAND_LINE else [d.hex() for d in listed]
                yield Violation(check, _one_of(accepted, role), _show(found, claims, role))

    def _check_events(self, claims: EventLogClaims) -> Iterator[Violation]:
        known = self._known(claims)
        for check, role, any_of_role in (
            (Check.EVENTLOG_FIRMWARE, Role.FIRMWARE, self.any_firmware_event),
            (Check.EVENTLOG_OTHER, Role.OTHER, self.any_other_event),
            (Check.EVENTLOG_RUNTIME, Role.RUNTIME, self.any_runtime_event),
        ):
            unknown = [e for e in claims.events if e.role is role and e.digest not in known]
            if unknown and not any_of_role:
                found = ", ".join(f"{e.register} {e.digest.hex()}" for e in unknown)
                yield Violation(check, f"no {role} but those listed in other_events", found)

    def _lines(self, claims: EventLogClaims) -> frozenset[bytes]:
        return command_line_digests(self.command_lines, claims.algorithm)

    def _known(self, claims: EventLogClaims) -> frozenset[bytes]:
        return self.kernels | self.initrds | self._lines(claims) | self.other_events

    def _check_dstack(self, claims: EventLogClaims) -> Iterator[Violation]:
        own = claims.dstack or DstackClaims()
        if claims.dstack is None and not (self.compose_hashes or self.app_ids or self.key_providers):
            return
        provider = None if own.key_provider is None else own.key_provider.encode()
        providers = frozenset(text.encode() for text in self.key_providers)
        for check, name, listed, any_value, found in (
            (
                Check.EVENTLOG_COMPOSE,
                "compose-hash",
                self.compose_hashes,
                self.any_compose_hash,
                own.compose_hash,
            ),
            (Check.EVENTLOG_APP, "app-id", self.app_ids, self.any_app_id, own.app_id),
            (Check.EVENTLOG_KEY_PROVIDER, "key-provider", providers, self.any_key_provider, provider),
        ):
            if found not in listed and not any_value:
                text = name == "key-provider"
                accepted = [_text(value, text) for value in listed]
                yield Violation(
                    check, _one_of(accepted, name), "none" if found is None else _text(found, text)
                )


def _text(value: bytes, text: bool) -> str:
    return value.decode() if text else value.hex()


def command_line_digests(lines: Collection[str], algorithm: Algorithm) -> frozenset[bytes]:
    """Each way in which a command line is measured: by Linux' EFI stub (UTF-16 and NUL), GRUB and systemd-stub."""
    forms = (
        form
        for line in lines
        for form in (line.encode("utf-16le") + b"\0\0", line.encode(), line.encode() + b"\0")
    )
    return frozenset(digest(algorithm, form) for form in forms)


def _one_of(accepted: Collection[str], what: str) -> str:
    return " or ".join(sorted(accepted)) or f"nothing: the policy lists no {what}"


def _show(found: Collection[bytes], claims: EventLogClaims, role: Role) -> str:
    text = claims.command_lines if role is Role.COMMAND_LINE else ()
    return ", ".join([*(repr(line) for line in text), *(d.hex() for d in found)]) or f"no {role} in the log"
