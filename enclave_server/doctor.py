"""`enclave-server doctor`: what stands between this machine and a gateway that clients accept, each with what to do.

It looks and changes nothing, but that collateral it fetched is kept where the gateway would keep it. What it finds is for
the operator: only a client's own verification decides anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from attestation.errors import AttestationError
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.nvidia.devices import parse_list
from attestation.nvidia.evidence import NONCE_BYTES, parse_evidence
from attestation.snp.policy import SnpPolicy
from attestation.snp.report import parse_report
from attestation.snp.verify import SnpClaims
from attestation.tdx.policy import DEBUG, TdxPolicy
from attestation.tdx.quote import parse_quote
from attestation.tdx.verify import TdxClaims
from enclave_server.config_identity import configured
from enclave_server.engine.address import parse_address
from enclave_server.engine.external import find_external
from enclave_server.engine.installed import EngineError, find_engine
from enclave_server.evidence.tee import Tee, open_tee
from enclave_server.settings import Settings

_LEAST_KERNEL = (6, 7)  # configfs-tsm
_LEAST_DRIVER = 550  # confidential computing as this gateway asks for it
_SUPPORTED = range(32, 34)  # vLLM 0.x
_LEAST_FREE = 64 * 1024 * 1024
_SWAPS, _DEVICES = Path("/proc/swaps"), Path("/sys/block")
_DAY = 86_400
_PATIENCE = 5.0  # seconds for an engine that should run already
_CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


class Health(StrEnum):
    """What is known of one thing."""

    OK = "ok"
    WARNING = "warning"  # works, with a cost
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing, in words."""

    step: str
    health: Health
    found: str
    advice: str = ""


class Doctor:
    """One examination of one machine."""

    def __init__(
        self,
        settings: Settings,
        content: bytes | None,
        origins: dict[str, str],
        *,
        open_: Callable[[Settings], Tee] = open_tee,
    ) -> None:
        self._settings, self._content, self._origins, self._open = settings, content, origins, open_
        self._tee: Tee | None = None
        self._claims: TdxClaims | SnpClaims | None = None
        self._gpus: tuple[str, ...] | None = None  # versions of their driver, when they were found

    def examine(self) -> Iterator[Finding]:
        """Every step in order. What needs something that an earlier one did not find is not reached."""
        steps = {
            "clock": self._clock,
            "kernel": self._kernel,
            "TEE": self._hardware,
            "configuration": self._configuration,
            "GPUs": self._nvidia,
            "GPU driver": self._driver,
            "engine": self._engine,
            "collateral": self._collateral,
            "clients": self._clients,
            "disk": self._disk,
            "memory": self._memory,
        }
        for step, look in steps.items():
            try:
                health, found, advice = look()
            except AttestationError as exc:
                health, found, advice = Health.FAILED, f"[{exc.check}] {exc.detail}", exc.advice
            except (EngineError, OSError, ValueError) as exc:
                health, found, advice = Health.FAILED, str(exc), ""
            yield Finding(step=step, health=health, found=found, advice=advice)

    def _clock(self) -> tuple[Health, str, str]:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if _clock_state() == _CLOCK_UNSYNCHRONISED:
            advice = (
                "Run chrony or systemd-timesyncd: statements and collateral have ends, clients have clocks"
            )
            return Health.WARNING, f"{now}, not synchronised", advice
        return Health.OK, now, ""

    def _kernel(self) -> tuple[Health, str, str]:
        release = platform.release()
        numbers = tuple(map(int, re.findall(r"\d+", release)[:2]))
        if self._settings.real_tee and numbers < _LEAST_KERNEL:
            advice = "Linux 6.7 or later has configfs-tsm; before it, TDX needs the host's quoting service on vsock"
            return Health.WARNING, release, advice
        return Health.OK, release, ""

    def _hardware(self) -> tuple[Health, str, str]:
        tee = self._open(self._settings)
        evidence = tee.evidence(secrets.token_bytes(64))
        self._tee = tee
        if isinstance(evidence, TdxEvidence):
            debug = bool(parse_quote(evidence.quote).td.td_attributes & DEBUG)
        else:  # of Azure's paravisor the step "clients" tells
            debug = isinstance(evidence, SnpEvidence) and parse_report(evidence.report).policy.debug
        if debug:
            return (
                Health.FAILED,
                f"{self._settings.tee}, in debug mode",
                "Launch the VM without debug: clients refuse it",
            )
        if not self._settings.real_tee:
            return Health.WARNING, f"{self._settings.tee}", "A simulated TEE proves nothing about hardware"
        return Health.OK, f"{self._settings.tee} gives evidence about what it is asked", ""

    def _configuration(self) -> tuple[Health, str, str]:
        if self._tee is None:
            return _NOT_REACHED
        digest = configured(self._settings, self._content, self._origins, self._tee.evidence)
        if digest is None:
            return Health.OK, "not held against the launch: config_identity does not ask for it", ""
        return Health.OK, f"{digest.hex()}, as launched", ""

    def _nvidia(self) -> tuple[Health, str, str]:
        if self._tee is None:
            return _NOT_REACHED
        found = self._tee.gpus(secrets.token_bytes(NONCE_BYTES))
        devices = parse_list(found) if found else ()
        self._gpus = tuple(parse_evidence(device.report).driver for device in devices)
        if not devices:
            return (
                Health.WARNING,
                "none",
                "Set nvidia_gpus where there are any: clients require one by default",
            )
        for number, device in enumerate(devices):
            if device.state is None:
                continue
            if not device.state.confidential:
                return (
                    Health.FAILED,
                    f"GPU {number} is not in confidential-computing mode",
                    "Turn it on from the host, then reset the GPU",
                )
            if device.state.devtools:
                return (
                    Health.FAILED,
                    f"GPU {number} has developer tools on",
                    "Turn them off from the host, then reset the GPU",
                )
            if not device.state.ready:
                return (
                    Health.FAILED,
                    f"GPU {number} accepts no work",
                    "Set the ready state: nvidia-smi conf-compute -srs 1",
                )
        return Health.OK, f"{len(devices)}, confidential, without developer tools", ""

    def _driver(self) -> tuple[Health, str, str]:
        if self._gpus is None:
            return _NOT_REACHED
        versions = sorted({version for version in self._gpus if version})
        if not versions:
            return Health.OK, "not needed", ""
        if len(versions) > 1:
            return Health.FAILED, ", ".join(versions), "All GPUs of a machine have one driver: reset them"
        if int(versions[0].partition(".")[0]) < _LEAST_DRIVER:
            return Health.FAILED, versions[0], f"Install driver {_LEAST_DRIVER} or later"
        return Health.OK, versions[0], ""

    def _engine(self) -> tuple[Health, str, str]:
        settings = self._settings
        if settings.engine is None:
            installed = find_engine(settings.engine_python)
        else:
            installed = find_external(
                parse_address(settings.engine),
                model=settings.model_name,
                seconds=_PATIENCE,
                replicas=settings.engine_replicas,
            )
        numbers = [int(number) for number in re.findall(r"\d+", installed.version)[:2]]
        if numbers[:1] != [0] or numbers[1] not in _SUPPORTED:
            advice = "This version of the gateway is tested with vLLM 0.32 and 0.33"
            return Health.WARNING, f"vLLM {installed.version}", advice
        if self._gpus:
            if any(flag.split("=")[0] == "--swap-space" for flag in self._settings.engine_flags):
                return (
                    Health.FAILED,
                    f"vLLM {installed.version} with --swap-space",
                    "Leave it out: registering host memory with the GPU fails in confidential mode (vllm #55428)",
                )
            advice = "Compare its speed with confidential mode off once: see vllm #57680 on decoding"
            return Health.WARNING, f"vLLM {installed.version} on GPUs in confidential mode", advice
        return Health.OK, f"vLLM {installed.version}", ""

    def _collateral(self) -> tuple[Health, str, str]:
        if self._tee is None:
            return _NOT_REACHED
        self._claims = self._tee.refresh()
        state = self._tee.state
        if state.unready:
            return Health.FAILED, state.unready, "docs/collect.md says what can be done"
        if state.left < _DAY:
            return (
                Health.WARNING,
                f"ends in {state.left / 3600:.0f} hours",
                "Is the vendors' service reachable?",
            )
        return Health.OK, "verified against this machine's own evidence", ""

    def _clients(self) -> tuple[Health, str, str]:
        """What a policy would refuse that names this image and loosens nothing."""
        if self._claims is None:
            return _NOT_REACHED
        now = datetime.now(UTC)
        if isinstance(self._claims, TdxClaims):
            violations = _ANY_TD.check(self._claims, now)
        else:
            violations = _ANY_GUEST.check(self._claims, now)
        if violations:
            advice = "Update the host's firmware, or loosen the policy by name: docs/policy.md"
            return Health.WARNING, "a strict policy refuses: " + "; ".join(map(str, violations)), advice
        return Health.OK, "a strict policy that names this image accepts it", ""

    def _disk(self) -> tuple[Health, str, str]:
        folder = self._settings.collateral_dir
        if folder is None:
            return Health.OK, "collateral_dir is not set: a boot needs the vendors", ""
        present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not self._settings.collateral_offline and not os.access(present, os.W_OK):
            return Health.WARNING, f"{present} cannot be written", "Let the gateway's user write there"
        free = shutil.disk_usage(present).free
        if free < _LEAST_FREE:
            return (
                Health.WARNING,
                f"{present} has {free // 1024} KiB left",
                "Make room: collateral cannot be kept",
            )
        return Health.OK, f"{present} has {free // 2**20} MiB left", ""

    def _memory(self) -> tuple[Health, str, str]:
        """Keys, secrets and an encrypted model that was opened are in memory alone, unless that goes to a disk."""
        if plain := _swaps_in_plain():
            advice = "swapoff -a, or swap to a device of dm-crypt: what is in memory alone must reach no disk"
            return Health.WARNING, f"swaps to {', '.join(plain)}, which is not known to be encrypted", advice
        return Health.OK, "nothing of it goes to a disk in plain", ""


_ANY_TD = TdxPolicy(any_measurement=True, any_mr_config_id=True, any_mr_owner=True, any_mr_owner_config=True)
_ANY_GUEST = SnpPolicy(any_measurement=True, any_host_data=True)
_NOT_REACHED = (Health.NOT_REACHED, "", "")


def _swaps_in_plain() -> list[str]:
    """Swap areas that are neither memory again (zram) nor of dm-crypt."""
    names = [line.split()[0] for line in _SWAPS.read_text().splitlines()[1:]]
    plain = []
    for name in names:
        device = Path(name).resolve().name
        uuid = _DEVICES / device / "dm/uuid"
        crypt = uuid.is_file() and uuid.read_text().startswith("CRYPT-")
        if not crypt and not device.startswith("zram"):
            plain.append(name)
    return plain


def _clock_state() -> int:
    """adjtimex(2) with nothing to change: its result is the clock's state."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256)))
