"""TCB info and QE identity of the simulated Intel, as the JSON objects Intel publishes, with defects on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from attestation.simulator.tdx_defects import TdxDefect as D

Json = dict[str, Any]

# no real platform carries these: "SIM" in the FMSPC, a digest of a sentence as the enclave's signer
FMSPC = bytes.fromhex("00000053494d")
PCE_ID = b"\x00\x00"
PPID = sha256(b"simulated platform").digest()[:16]
INSTANCE_ID = sha256(b"simulated platform instance").digest()[:16]
QE_SIGNER = sha256(b"simulated quoting enclave signer").digest()
MODULE_MAKER = sha256(b"simulated module maker").digest() + bytes(16)
SGX_COMPONENTS = (4, 4, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
TDX_COMPONENTS = (5, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
PCE_SVN = 13
QE_PRODUCT, QE_SVN = 2, 4
MODULE_VERSION, MODULE_SVN = 1, 7
EVALUATION_NUMBER = 20
LEVEL_DATE = "2025-08-13T00:00:00Z"
OLD_LEVEL_DATE = "2024-03-13T00:00:00Z"
ADVISORIES = ["INTEL-SA-09999"]
LIFETIME = timedelta(days=30)


def tcb_info(now: datetime, defect: D | None = None) -> Json:
    """TCB info for the simulated platform, issued a day before `now`."""
    info: Json = {
        "id": "TDX",
        "version": 3,
        **_dates(now),
        "fmspc": FMSPC.hex().upper(),
        "pceId": PCE_ID.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "tdxModule": _module(),
        "tdxModuleIdentities": [
            {"id": "TDX_03", **_module(), "tcbLevels": [_svn_level(5, "UpToDate")]},
            {
                "id": "TDX_01",
                **_module(),
                "tcbLevels": [_svn_level(MODULE_SVN, "UpToDate"), _svn_level(2, "OutOfDate")],
            },
        ],
        "tcbLevels": [
            platform_level("UpToDate"),
            platform_level("OutOfDate", sgx=(2, 2, *SGX_COMPONENTS[2:]), tdx=(2, 0, 2, *TDX_COMPONENTS[3:])),
        ],
    }
    if edit := _TCB_INFO_EDITS.get(defect):
        edit(info, now)
    return info


def qe_identity(now: datetime, defect: D | None = None) -> Json:
    """The identity of the simulated TD quoting enclave, issued a day before `now`."""
    identity: Json = {
        "id": "TD_QE",
        "version": 2,
        **_dates(now),
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [_svn_level(QE_SVN, "UpToDate"), _svn_level(2, "OutOfDate")],
    }
    if edit := _QE_IDENTITY_EDITS.get(defect):
        edit(identity, now)
    return identity


def encode(document: Json) -> str:
    """The text that is signed: as compact as Intel's."""
    return json.dumps(document, separators=(",", ":"))


def platform_level(
    status: str,
    *,
    sgx: tuple[int, ...] = SGX_COMPONENTS,
    tdx: tuple[int, ...] = TDX_COMPONENTS,
    pce_svn: int = PCE_SVN,
    advisories: tuple[str, ...] = (),
) -> Json:
    """One TCB level; those below the newest are dated earlier, as Intel's are."""
    level: Json = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in sgx],
            "pcesvn": pce_svn,
            "tdxtcbcomponents": [{"svn": svn} for svn in tdx],
        },
        "tcbDate": LEVEL_DATE if status == "UpToDate" else OLD_LEVEL_DATE,
        "tcbStatus": status,
    }
    return {**level, "advisoryIDs": list(advisories)} if advisories else level


def _dates(now: datetime, issued: timedelta = timedelta(days=-1)) -> Json:
    return {"issueDate": _text(now + issued), "nextUpdate": _text(now + issued + LIFETIME)}


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _module() -> Json:
    return {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


def _svn_level(isv_svn: int, status: str) -> Json:
    date = LEVEL_DATE if status == "UpToDate" else OLD_LEVEL_DATE
    return {"tcb": {"isvsvn": isv_svn}, "tcbDate": date, "tcbStatus": status}


@dataclass(frozen=True, slots=True)
class _Set:
    """An edit: the value at a path of keys and indices."""

    path: tuple[str | int, ...]
    value: Any

    def __call__(self, document: Json, now: datetime) -> None:
        target: Any = document
        for step in self.path[:-1]:
            target = target[step]
        target[self.path[-1]] = self.value


def _redate(issued: timedelta) -> Callable[[Json, datetime], None]:
    return lambda document, now: document.update(_dates(now, issued))


def _drop_a_component(document: Json, now: datetime) -> None:
    document["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].pop()


_EXPIRED, _FUTURE = timedelta(days=-31), timedelta(days=1)
_STATUS = ("tcbLevels", 0, "tcbStatus")
_MODULE_LEVEL = ("tdxModuleIdentities", 1, "tcbLevels", 0)
_TCB_INFO_EDITS: dict[D | None, Callable[[Json, datetime], None]] = {
    D.TCB_INFO_OF_SGX: _Set(("id",), "SGX"),
    D.TCB_INFO_VERSION_2: _Set(("version",), 2),
    D.TCB_INFO_EXPIRED: _redate(_EXPIRED),
    D.TCB_INFO_NOT_YET_VALID: _redate(_FUTURE),
    D.FIFTEEN_COMPONENTS: _drop_a_component,
    D.UNKNOWN_STATUS: _Set(_STATUS, "Excellent"),
    D.OTHER_FMSPC: _Set(("fmspc",), "00906EA10000"),
    D.OTHER_PCE_ID: _Set(("pceId",), "0100"),
    D.TCB_REVOKED: _Set(_STATUS, "Revoked"),
    D.TCB_OUT_OF_DATE: _Set(_STATUS, "OutOfDate"),
    D.CONFIGURATION_NEEDED: _Set(_STATUS, "ConfigurationNeeded"),
    D.SW_HARDENING_NEEDED: _Set(_STATUS, "SWHardeningNeeded"),
    D.ADVISORY: _Set(("tcbLevels", 0, "advisoryIDs"), ADVISORIES),
    D.MODULE_STATUS_REVOKED: _Set((*_MODULE_LEVEL, "tcbStatus"), "Revoked"),
    D.MODULE_OUT_OF_DATE: _Set((*_MODULE_LEVEL, "tcbStatus"), "OutOfDate"),
    D.MODULE_MAKER: _Set(("tdxModuleIdentities", 1, "mrsigner"), MODULE_MAKER.hex()),
}
_QE_IDENTITY_EDITS: dict[D | None, Callable[[Json, datetime], None]] = {
    D.QE_IDENTITY_OF_SGX: _Set(("id",), "QE"),
    D.QE_IDENTITY_EXPIRED: _redate(_EXPIRED),
    D.QE_IDENTITY_NOT_YET_VALID: _redate(_FUTURE),
    D.QE_STATUS_REVOKED: _Set(_STATUS, "Revoked"),
    D.QE_OUT_OF_DATE: _Set(_STATUS, "OutOfDate"),
}
