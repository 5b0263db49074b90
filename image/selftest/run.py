"""The self-test: the image boots, measures what was predicted, answers the real SDK, and every change to it is caught.

No special hardware: QEMU emulates the CPU, swtpm is the TPM, and a simulated machine vouches for that (docs/collect.md). Every boot
has one more attempt and every wait an end.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from shutil import which
from typing import TypeVar

import httpx

from attestation.checks import Check
from attestation.errors import AttestationError, PolicyError, UnavailableError
from attestation.evidence import parse_evidence
from attestation.policy import Policy
from attestation.verify import verify
from client_sdk.kept import fetch_evidence
from client_sdk.tls import unpinned_context
from image.errors import MISSING, ImageError
from image.machine import Machine, running
from image.measure.pcr import Pcrs, direct
from image.measure.profiles import Profile
from image.selftest.engine import MODEL, engine, unreached
from image.selftest.registers import compared, differences, table
from image.selftest.tampers import TAMPERS, Moves, Stops, Tamper
from image.selftest.world import Image, World, configured, make_world

Say = Callable[[str], None]
T = TypeVar("T")
_READY_SECONDS, _SERVES_SECONDS, _STOPS_SECONDS = 150.0, 240.0, 60.0
_READY, _REFUSED, _SERVES = "enclave-init: ready", "enclave-init: REFUSED", "gateway listens"
_ENDED = "enclave-init: gateway ended"


def selftest(out: Path, *, profiles: Mapping[str, Profile], say: Say) -> None:
    """Boot the image in `out` and each tampered one. Raises ImageError at the first thing that is not as it has to be.

    One of `profiles` has to fit the first boot; the others are held against it alone.
    """
    _check_programs()
    with tempfile.TemporaryDirectory(prefix="selftest-") as folder, engine() as port, unreached() as closed:
        test = SelfTest(Path(folder), out, say)
        test.prepare(profiles, port, closed.port)
        test.untampered()
        for tamper in TAMPERS:
            test.tampered(tamper)
            if closed.connections():
                raise ImageError("a machine got to a port that its configuration does not open")


class SelfTest:
    """One image."""

    def __init__(self, folder: Path, out: Path, say: Say) -> None:
        self._folder, self._out, self._say = folder, out, say
        self._boots = count(1)
        self._world: World
        self._image: Image
        self._predicted: dict[str, Pcrs]  # by profile; one is left after the first boot
        self._policy: Policy  # what a user of the image has

    def prepare(self, profiles: Mapping[str, Profile], port: int, closed: int) -> None:
        """A configuration, a model and a machine's keys; and what they lead to, computed from files alone."""
        self._world = make_world(self._folder, engine=port, closed=closed)
        image = self._image = configured(self._out, self._world, self._folder)
        kernel, initrd, memory = (
            image.kernel.read_bytes(),
            image.initrd.read_bytes(),
            image.boot().memory << 20,
        )
        self._predicted = {
            name: direct(kernel, initrd, image.line, profile, memory=memory)
            for name, profile in profiles.items()
        }

    def untampered(self) -> None:
        """As it should be: the registers, and the SDK under the policy that follows from the prediction."""

        def look(machine: Machine) -> None:
            document = self._ask(machine)
            boot, comparisons = compared(document, self._predicted)
            nearest, fit = comparisons[0], [one.cell.profile for one in comparisons if one.same]
            name = nearest.cell.profile
            self._say(f"boots as it is, as predicted under {' and '.join(fit) or 'no profile'}:")
            for line in table(boot, nearest):
                self._say(line)
            if not fit:
                raise ImageError(
                    f"the boot is not what {name}, the nearest, predicts: {differences(nearest)}"
                )
            self._predicted = {name: self._predicted[name]}
            self._policy = self._world.only(self._predicted[name].measurement())
            self._say(f"  a client verified it by these numbers and was told: {self._chat(machine)!r}")

        self._booted(self._image, look)

    def tampered(self, tamper: Tamper) -> None:
        """One change: the boot stops with its line, or its register moves and a client refuses."""
        folder = self._folder / f"tampered-{next(self._boots)}"
        folder.mkdir()
        image = tamper.change(self._image, folder)
        match tamper.caught:
            case Stops(line=line):
                self._twice(image, lambda machine: self._stops(machine, line))
                self._say(f"{tamper.name}: stopped with “{line}”")
            case Moves(register=register, what=what):

                def look(machine: Machine) -> None:
                    self._moved(machine, register, what)
                    if tamper.tries_way_out:
                        _wait_for_no_way_out(machine)

                self._booted(image, look)
                self._say(f"{tamper.name}: {register} moved at “{what}”, and a client refused")
                if tamper.tries_way_out:
                    self._say("  its gateway tried to connect where no rule lets it, and did not get there")

    def _moved(self, machine: Machine, register: str, what: str) -> None:
        document = self._ask(machine)
        found = differences(compared(document, self._predicted)[1][0])
        if found != [(register, what)]:
            raise ImageError(f"expected {register} to move at {what!r}, found {found}")
        try:
            self._chat(machine)
        except PolicyError as exc:
            if [violation.check for violation in exc.violations] == [Check.VTPM_PCR]:
                return
            raise
        raise ImageError("a client that knows the predicted registers used it")

    def _stops(self, machine: Machine, line: str) -> None:
        machine.wait_for(line, _READY, seconds=_READY_SECONDS)
        console = machine.wait_for_end(seconds=_STOPS_SECONDS)
        if line not in console or _READY in console:
            raise ImageError(f"the machine was to stop with {line!r}, and did not")

    def _ask(self, machine: Machine) -> bytes:
        """An evidence document, verified under a policy that asks for everything but the image."""
        nonce = secrets.token_bytes(32)
        document = _fetch(machine, nonce)
        verify(parse_evidence(document), self._world.any_image, nonce=nonce, now=datetime.now(UTC))
        return document

    def _chat(self, machine: Machine) -> str:
        """What the SDK gets: verified, sealed, and its receipt checked."""
        from client_sdk import OpenAI  # noqa: PLC0415 - the extra `openai`

        url = f"{machine.origin}/v1"
        with OpenAI(base_url=url, policy=self._policy, api_key="none", timeout=60) as client:
            messages = [{"role": "user", "content": "Hello from outside"}]
            answer = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
        return answer.choices[0].message.content or ""

    def _booted(self, image: Image, look: Callable[[Machine], None]) -> None:
        """Boot it until the gateway answers, and look."""

        def wait_and_look(machine: Machine) -> None:
            if machine.wait_for(_READY, _REFUSED, seconds=_READY_SECONDS) != _READY:
                raise ImageError(f"the machine refused to start: {machine.line_with(_REFUSED)}")
            if machine.wait_for(_SERVES, _ENDED, seconds=_SERVES_SECONDS) != _SERVES:
                raise ImageError(f"the gateway ended: {machine.line_with('enclave-server:')}")
            look(machine)

        self._twice(image, wait_and_look)

    def _twice(self, image: Image, work: Callable[[Machine], T]) -> T:
        """What the work gives, of this boot or of one more."""
        try:
            return self._once(image, work)
        except (ImageError, AttestationError) as exc:
            self._say(f"  once more, after: {exc}")
        try:
            return self._once(image, work)
        except AttestationError as exc:
            raise ImageError(str(exc)) from exc

    def _once(self, image: Image, work: Callable[[Machine], T]) -> T:
        with running(image.boot(), self._folder / f"boot-{next(self._boots)}") as machine:
            return work(machine)


def _check_programs() -> None:
    """What is not looked for where it is used."""
    missing = [] if which("mkfs.erofs") else ["erofs-utils (apt-get install)"]
    missing += [] if find_spec("openai") else ["the extra `openai` (pip install)"]
    if missing:
        raise ImageError(f"the image was not booted: {' and '.join(missing)} is needed", status=MISSING)


def _fetch(machine: Machine, nonce: bytes) -> bytes:
    deadline = time.monotonic() + _SERVES_SECONDS
    while True:
        try:
            return fetch_evidence(httpx, machine.origin, {}, nonce).document
        except UnavailableError:  # it listens before it answers
            if time.monotonic() > deadline or not machine.running:
                raise
            time.sleep(1)


def _wait_for_no_way_out(machine: Machine) -> None:
    """The gateway says that it cannot reach its log, and goes on to try."""
    deadline = time.monotonic() + _SERVES_SECONDS
    with httpx.Client(base_url=machine.origin, verify=unpinned_context(), trust_env=False) as client:
        while "log_failed" not in (said := client.get("/readyz").text):
            if time.monotonic() > deadline:
                raise ImageError(f"the gateway was to miss its log, and says {said[:200]!r}")
            time.sleep(1)
