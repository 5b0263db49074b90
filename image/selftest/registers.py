"""What was predicted beside what a boot measured, register by register: what `attested explain` says, for one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attestation.measure.explain import Boot, Comparison, Register, State, explain
from attestation.release import Expected, Release
from client_sdk.boots import read_boot
from image.errors import ImageError
from image.measure.pcr import Pcrs


def release_of(predicted: Mapping[str, Pcrs]) -> Release:
    """The image under each of these profiles."""
    return Release(
        id="this image",
        vtpm=tuple(dict.fromkeys(pcrs.measurement() for pcrs in predicted.values())),
        expected=tuple(
            Expected(
                platform="vtpm",
                profile=name,
                shape="2 GiB",
                boot="direct",
                events=pcrs.events,
                left_out=pcrs.left_out,
            )
            for name, pcrs in predicted.items()
        ),
    )


def compared(document: bytes, predicted: Mapping[str, Pcrs]) -> tuple[Boot, tuple[Comparison, ...]]:
    """The boot that an evidence document shows, beside each profile, the nearest first."""
    boot = read_boot(document).boot
    if not boot.events:
        raise ImageError("the evidence has no event log of the boot that leads to its registers")
    return boot, explain(boot, (release_of(predicted),))


def differences(comparison: Comparison) -> list[tuple[str, str]]:
    """Each register that differs, and what its first event that differs should have been."""
    return [(r.name, _what(r)) for r in comparison.registers if r.state in (State.DIFFERS, State.NOT_SHOWN)]


def _what(register: Register) -> str:
    difference = register.difference
    if difference is None:
        return "a value that nothing explains"
    return difference.expected.what if difference.expected is not None else "one event more"


def table(boot: Boot, comparison: Comparison) -> Iterator[str]:
    """A line for each register that is predicted, or into which anything was measured."""
    for register in sorted(comparison.registers, key=lambda r: int(r.name.removeprefix("PCR"))):
        count, found = len(boot.events.get(register.name, ())), (register.found or b"").hex()[:16]
        why = f": {register.reason}" if register.state is State.NOT_PREDICTED else ""
        yield f"  {register.name:6} {found}…  {count:2} events  {register.state}{why}"
