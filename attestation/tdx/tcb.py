"""Where a platform stands among Intel's TCB levels: platform, TDX module and quoting enclave, made one status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import ge

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.tdx.collateral import ModuleIdentity, QeIdentity, SvnLevel, TcbInfo, TcbLevel
from attestation.tdx.pck import Platform
from attestation.tdx.quote import QeReport, TdReport
from attestation.tdx.status import TcbStatus, converge, relaunch_advised

_SGX_ATTRIBUTE_DEBUG = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """The converged status and its parts. `date` is the oldest of the levels reached."""

    status: TcbStatus
    platform_status: TcbStatus
    qe_status: TcbStatus
    module_status: TcbStatus | None  # None for TDX modules of version 0, which the platform's level covers
    date: datetime
    advisories: tuple[str, ...]


def check_qe_identity(report: QeReport, identity: QeIdentity) -> SvnLevel:
    """The enclave that signed is Intel's TD quoting enclave. Returns the level its version reaches."""
    if report.attributes[0] & _SGX_ATTRIBUTE_DEBUG:
        raise VerificationError(
            Check.TDX_QE_DEBUG, "the quoting enclave runs in debug mode: its host can read its keys"
        )
    for name, expected, found in (
        ("MRSIGNER", identity.mr_signer, report.mr_signer),
        ("MISCSELECT", identity.misc_select, _masked(report.misc_select, identity.misc_select_mask)),
        ("attributes", identity.attributes, _masked(report.attributes, identity.attributes_mask)),
        ("ISVPRODID", identity.isv_prod_id, report.isv_prod_id),
    ):
        if expected != found:
            raise VerificationError(
                Check.TDX_QE_IDENTITY,
                f"quoting enclave {name}: expected {_show(expected)}, found {_show(found)}",
            )
    return _svn_level(identity.levels, report.isv_svn, Check.TDX_QE_LEVEL, "quoting enclave")


def check_tcb(td: TdReport, platform: Platform, info: TcbInfo, qe: SvnLevel) -> Tcb:
    """The status of the whole platform. `Revoked`, and a platform below every level, are refused here.

    A TD 1.5 report has two TCBs: the one the TD was launched on, which counts, and the one it runs on now,
    which may not be worse than known, and may show that a restart of the TD is all that is missing.
    """
    _check_module_identity(td, info)
    launched = _standing(td.tee_tcb_svn, platform, info)
    now = td.tee_tcb_svn2 or td.tee_tcb_svn
    running = launched if now == td.tee_tcb_svn else _standing(now, platform, info)
    for part in (*launched, *running, qe):
        if part.status is TcbStatus.REVOKED:
            raise VerificationError(
                Check.TDX_TCB_REVOKED, f"Intel lists this TCB as Revoked (level of {part.date:%Y-%m-%d})"
            )
    parts: list[TcbLevel | SvnLevel] = [*launched, qe]
    status = converge(part.status for part in parts)
    after_restart = converge(part.status for part in (*running, qe))
    # Intel QVL 4.1.2.4.17.4.3: only where the TDX module itself was out of date at launch
    if launched[1:] and launched[-1].status.is_out_of_date and not after_restart.is_out_of_date:
        status = relaunch_advised(converge((status, after_restart)))
    return Tcb(
        status=status,
        platform_status=launched[0].status,
        qe_status=qe.status,
        module_status=launched[1].status if launched[1:] else None,
        date=min(part.date for part in parts),
        advisories=tuple(sorted({a for part in parts for a in part.advisories})),
    )


def _standing(tee_tcb_svn: bytes, platform: Platform, info: TcbInfo) -> tuple[TcbLevel | SvnLevel, ...]:
    """The levels of the platform and, for TDX modules of version 1 and later, of the module."""
    module = _module_level(tee_tcb_svn, info)
    level = _platform_level(tee_tcb_svn, platform, info)
    return (level,) if module is None else (level, module)


def _check_module_identity(td: TdReport, info: TcbInfo) -> None:
    """The TDX module's signer and attributes are those of its major version."""
    identity = _module_identity(td.tee_tcb_svn, info)
    found = td.seam_attributes.to_bytes(8, "little")
    if td.mr_signer_seam != identity.mr_signer:
        raise VerificationError(
            Check.TDX_MODULE,
            f"MRSIGNERSEAM: expected {identity.mr_signer.hex()} for {identity.id}, found {td.mr_signer_seam.hex()}",
        )
    if _masked(found, identity.attributes_mask) != identity.attributes:
        raise VerificationError(
            Check.TDX_MODULE,
            f"SEAMATTRIBUTES: expected {identity.attributes.hex()} for {identity.id}, found {found.hex()}",
        )


def _module_level(tee_tcb_svn: bytes, info: TcbInfo) -> SvnLevel | None:
    """TEE_TCB_SVN[1] is the TDX module's major version and picks its identity; [0] is its version in there."""
    identity = _module_identity(tee_tcb_svn, info)
    if tee_tcb_svn[1] == 0:
        return None
    return _svn_level(identity.levels, tee_tcb_svn[0], Check.TDX_MODULE_LEVEL, f"TDX module {identity.id}")


def _module_identity(tee_tcb_svn: bytes, info: TcbInfo) -> ModuleIdentity:
    wanted = f"TDX_{tee_tcb_svn[1]:02X}"
    for identity in info.modules:
        if identity.id.upper() == wanted:
            return identity
    known = [identity.id for identity in info.modules]
    raise VerificationError(Check.TDX_MODULE, f"the TDX module is {wanted}, the TCB info knows {known}")


def _platform_level(tee_tcb_svn: bytes, platform: Platform, info: TcbInfo) -> TcbLevel:
    """The highest level whose every component the platform reaches (Intel QVL 4.1.2.4.17.1 to .3).

    The first two TDX components are the TDX module's. Modules of version 1 and later have an identity with
    levels of its own, and are judged by that alone.
    """
    first = 0 if tee_tcb_svn[1] == 0 else 2
    for level in info.levels:
        if (
            _reaches(platform.sgx_components, level.sgx_components)
            and platform.pce_svn >= level.pce_svn
            and _reaches(tee_tcb_svn[first:], level.tdx_components[first:])
        ):
            return level
    raise VerificationError(
        Check.TDX_TCB_LEVEL,
        f"the platform reaches none of {len(info.levels)} TCB levels: SGX components {list(platform.sgx_components)}, "
        f"PCESVN {platform.pce_svn}, TDX components {list(tee_tcb_svn)}",
    )


def _reaches(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Every component is at least as high; both have sixteen, or both the same part of them, as parsed."""
    return all(map(ge, found, wanted))


def _svn_level(levels: Sequence[SvnLevel], isv_svn: int, check: Check, what: str) -> SvnLevel:
    for level in levels:
        if isv_svn >= level.isv_svn:
            return level
    lowest = levels[-1].isv_svn if levels else "no level at all"
    raise VerificationError(
        check, f"the {what} has ISVSVN {isv_svn}, the lowest that Intel knows is {lowest}"
    )


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(v & m for v, m in zip(value, mask, strict=True))


def _show(value: bytes | int) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
