"""Intel's TCB info (version 3) and QE identity (version 2): JSON texts to frozen values. Judges nothing.

Parsed values are remembered by the text itself: the same collateral comes with every quote of a platform.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.tdx.status import TcbStatus

MAX_JSON_BYTES = 512 * 1024
MAX_LEVELS = 256
COMPONENTS = 16
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PLATFORM_STATUSES = {str(s): s for s in TcbStatus if not s.is_ours}
_SVN_STATUSES = {str(s): s for s in (TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, TcbStatus.REVOKED)}
_SVN = itemgetter("svn")
_CACHE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """One platform level: what it takes to reach it, and what Intel says of those who did."""

    sgx_components: tuple[int, ...]
    pce_svn: int
    tdx_components: tuple[int, ...]
    status: TcbStatus
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SvnLevel:
    """One level of an enclave or a TDX module: reached by a single security version number."""

    isv_svn: int
    status: TcbStatus
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIdentity:
    """Who signs a TDX module of one major version, and its levels (none for version 0)."""

    id: str
    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """Levels are sorted as Intel's library sorts them: highest first."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    tcb_type: int
    evaluation_number: int
    modules: tuple[ModuleIdentity, ...]
    levels: tuple[TcbLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QeIdentity:
    """Which enclave may quote."""

    id: str
    version: int
    issued: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[SvnLevel, ...]


@lru_cache(maxsize=_CACHE)
def parse_tcb_info(text: str) -> TcbInfo:
    """TCB info as Intel signed it. The ids, versions and dates are left for the verifier to judge."""
    table = _Table(
        parse_json_object(text, Check.TDX_COLLATERAL_FORMAT, "TCB info", limit=MAX_JSON_BYTES), "TCB info"
    )
    kind, version = table.text("id"), table.uint("version")
    # another technology's or version's levels have another shape; the verifier refuses them by their kind
    modules, levels = _tdx_levels(table) if (kind, version) == ("TDX", 3) else ((), ())
    return TcbInfo(
        id=kind,
        version=version,
        issued=table.date("issueDate"),
        next_update=table.date("nextUpdate"),
        fmspc=table.hex("fmspc", 6),
        pce_id=table.hex("pceId", 2),
        tcb_type=table.uint("tcbType"),
        evaluation_number=table.uint("tcbEvaluationDataNumber"),
        modules=modules,
        levels=levels,
    )


@lru_cache(maxsize=_CACHE)
def parse_qe_identity(text: str) -> QeIdentity:
    """A QE identity as Intel signed it. The id, version and dates are left for the verifier to judge."""
    what = "QE identity"
    table = _Table(parse_json_object(text, Check.TDX_COLLATERAL_FORMAT, what, limit=MAX_JSON_BYTES), what)
    return QeIdentity(
        id=table.text("id"),
        version=table.uint("version"),
        issued=table.date("issueDate"),
        next_update=table.date("nextUpdate"),
        evaluation_number=table.uint("tcbEvaluationDataNumber"),
        misc_select=table.hex("miscselect", 4),
        misc_select_mask=table.hex("miscselectMask", 4),
        attributes=table.hex("attributes", 16),
        attributes_mask=table.hex("attributesMask", 16),
        mr_signer=table.hex("mrsigner", 32),
        isv_prod_id=table.uint("isvprodid"),
        levels=_svn_levels(table),
    )


@lru_cache(maxsize=_CACHE)
def _date(text: str) -> datetime:
    if not _DATE.fullmatch(text):
        raise ValueError
    return datetime.fromisoformat(text)


class _Table:
    """A JSON object whose fields are asked for by name and type."""

    __slots__ = ("_raw", "_what")

    def __init__(self, raw: dict[str, Any], what: str) -> None:
        self._raw, self._what = raw, what

    def error(self, detail: str) -> MalformedError:
        return MalformedError(Check.TDX_COLLATERAL_FORMAT, f"{self._what}: {detail}")

    def has(self, key: str) -> bool:
        return key in self._raw

    def _get(self, key: str, kind: type) -> Any:
        value = self._raw.get(key)
        if type(value) is not kind:  # exact: JSON's true is no number
            found = type(value).__name__ if key in self._raw else "nothing"
            raise self.error(f"{key} must be of type {kind.__name__}, found {found}")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, str))

    def uint(self, key: str) -> int:
        value = int(self._get(key, int))
        if not 0 <= value < 1 << 32:
            raise self.error(f"{key} is {value}, which is no 32-bit number")
        return value

    def hex(self, key: str, size: int) -> bytes:
        text = self.text(key)
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if len(data) != size or len(text) != 2 * size:
            raise self.error(f"{key} must be {size} bytes of hex, found {text[:80]!r}")
        return data

    def date(self, key: str) -> datetime:
        text = self.text(key)
        try:
            return _date(text)
        except ValueError:
            raise self.error(
                f"{key} must be a UTC date like 2026-01-31T00:00:00Z, found {text[:80]!r}"
            ) from None

    def table(self, key: str) -> _Table:
        return _Table(self._get(key, dict), f"{self._what} {key}")

    def tables(self, key: str, *, optional: bool = False) -> list[_Table]:
        if optional and key not in self._raw:
            return []
        items = self._get(key, list)
        if len(items) > MAX_LEVELS or not all(type(item) is dict for item in items):
            raise self.error(f"{key} must be at most {MAX_LEVELS} objects")
        return [_Table(item, f"{self._what} {key}") for item in items]

    def status(self, known: Mapping[str, TcbStatus]) -> TcbStatus:
        text = self.text("tcbStatus")
        status = known.get(text)
        if status is None:
            raise self.error(f"tcbStatus {text[:80]!r} is unknown")
        return status

    def advisories(self) -> tuple[str, ...]:
        items = self._get("advisoryIDs", list) if "advisoryIDs" in self._raw else []
        if len(items) > MAX_LEVELS or not all(type(item) is str for item in items):
            raise self.error(f"advisoryIDs must be at most {MAX_LEVELS} strings")
        return tuple(items)

    def svns(self, key: str) -> tuple[int, ...]:
        items = self._get(key, list)
        try:
            svns: tuple[Any, ...] = tuple(map(_SVN, items))
        except (KeyError, TypeError):  # an item without one, or that is no object
            svns = ()
        if len(svns) != COMPONENTS or set(map(type, svns)) != {int} or min(svns) < 0 or max(svns) > 0xFF:
            raise self.error(f"{key} must be {COMPONENTS} numbers below 256, found {len(items)} entries")
        return svns


def _tdx_levels(table: _Table) -> tuple[tuple[ModuleIdentity, ...], tuple[TcbLevel, ...]]:
    modules = [_module(t, with_levels=True) for t in table.tables("tdxModuleIdentities", optional=True)]
    if table.has("tdxModule"):
        modules.insert(0, _module(table.table("tdxModule"), with_levels=False))
    if len({module.id.upper() for module in modules}) != len(modules):
        raise table.error("tdxModuleIdentities names a module twice")
    levels = [_tcb_level(t) for t in table.tables("tcbLevels")]
    levels.sort(key=lambda v: (v.sgx_components, v.pce_svn, v.tdx_components), reverse=True)
    return tuple(modules), tuple(levels)


def _tcb_level(table: _Table) -> TcbLevel:
    tcb = table.table("tcb")
    return TcbLevel(
        sgx_components=tcb.svns("sgxtcbcomponents"),
        pce_svn=tcb.uint("pcesvn"),
        tdx_components=tcb.svns("tdxtcbcomponents"),
        status=table.status(_PLATFORM_STATUSES),
        date=table.date("tcbDate"),
        advisories=table.advisories(),
    )


def _svn_levels(table: _Table) -> tuple[SvnLevel, ...]:
    """Highest security version first, as Intel publishes them; any other order would be read in two ways."""
    levels = tuple(
        SvnLevel(
            isv_svn=t.table("tcb").uint("isvsvn"),
            status=t.status(_SVN_STATUSES),
            date=t.date("tcbDate"),
            advisories=t.advisories(),
        )
        for t in table.tables("tcbLevels")
    )
    if any(higher.isv_svn <= lower.isv_svn for higher, lower in pairwise(levels)):
        raise table.error("tcbLevels must be in descending order of isvsvn")
    return levels


def _module(table: _Table, *, with_levels: bool) -> ModuleIdentity:
    return ModuleIdentity(
        id=table.text("id") if with_levels else "TDX_00",
        mr_signer=table.hex("mrsigner", 48),
        attributes=table.hex("attributes", 8),
        attributes_mask=table.hex("attributesMask", 8),
        levels=_svn_levels(table) if with_levels else (),
    )
