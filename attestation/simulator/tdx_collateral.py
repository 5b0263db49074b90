"""TCB info and QE identity of the simulated Intel, as the JSON objects Intel publishes, with defects on request."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from attestation.simulator.tdx_defects import TdxDefect as D

Json = dict[str, Any]
Edit = tuple[tuple[str | int, ...], Any]  # a path of keys and indices, and the value to set there

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
_YESTERDAY = timedelta(days=-1)


def tcb_info(now: datetime, defect: D | None = None) -> Json:
    """TCB info for the simulated platform, issued a day before `now`."""
    info: Json = {
        "id": "TDX",
        "version": 3,
        **_dates(now + _TCB_INFO_ISSUED.get(defect, _YESTERDAY)),
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
    _edit(info, _TCB_INFO_EDITS.get(defect))
    return info


def qe_identity(now: datetime, defect: D | None = None) -> Json:
    """The identity of the simulated TD quoting enclave, issued a day before `now`."""
    identity: Json = {
        "id": "TD_QE",
        "version": 2,
        **_dates(now + _QE_IDENTITY_ISSUED.get(defect, _YESTERDAY)),
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [_svn_level(QE_SVN, "UpToDate"), _svn_level(2, "OutOfDate")],
    }
    _edit(identity, _QE_IDENTITY_EDITS.get(defect))
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


def _dates(issued: datetime) -> Json:
    return {"issueDate": _text(issued), "nextUpdate": _text(issued + LIFETIME)}


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _module() -> Json:
    return {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


def _svn_level(isv_svn: int, status: str) -> Json:
    date = LEVEL_DATE if status == "UpToDate" else OLD_LEVEL_DATE
    return {"tcb": {"isvsvn": isv_svn}, "tcbDate": date, "tcbStatus": status}


def _edit(document: Json, edit: Edit | None) -> None:
    if edit is not None:
        path, value = edit
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value


_STATUS = ("tcbLevels", 0, "tcbStatus")
_MODULE_STATUS = ("tdxModuleIdentities", 1, "tcbLevels", 0, "tcbStatus")
_EXPIRED, _FUTURE = timedelta(days=-31), timedelta(days=1)
_TCB_INFO_ISSUED = {None: _YESTERDAY, D.TCB_INFO_EXPIRED: _EXPIRED, D.TCB_INFO_NOT_YET_VALID: _FUTURE}
_QE_IDENTITY_ISSUED = {
    None: _YESTERDAY,
    D.QE_IDENTITY_EXPIRED: _EXPIRED,
    D.QE_IDENTITY_NOT_YET_VALID: _FUTURE,
}
_TCB_INFO_EDITS: dict[D | None, Edit] = {
    D.TCB_INFO_OF_SGX: (("id",), "SGX"),
    D.TCB_INFO_VERSION_2: (("version",), 2),
    D.TCB_INFO_TYPE_1: (("tcbType",), 1),
    D.FIFTEEN_COMPONENTS: (("tcbLevels", 0, "tcb", "tdxtcbcomponents"), [{"svn": 0}] * 15),
    D.UNKNOWN_STATUS: (_STATUS, "Excellent"),
    D.OTHER_FMSPC: (("fmspc",), "00906EA10000"),
    D.OTHER_PCE_ID: (("pceId",), "0100"),
    D.TCB_REVOKED: (_STATUS, "Revoked"),
    D.TCB_OUT_OF_DATE: (_STATUS, "OutOfDate"),
    D.CONFIGURATION_NEEDED: (_STATUS, "ConfigurationNeeded"),
    D.SW_HARDENING_NEEDED: (_STATUS, "SWHardeningNeeded"),
    D.ADVISORY: (("tcbLevels", 0, "advisoryIDs"), ADVISORIES),
    D.MODULE_STATUS_REVOKED: (_MODULE_STATUS, "Revoked"),
    D.MODULE_OUT_OF_DATE: (_MODULE_STATUS, "OutOfDate"),
    D.MODULE_MAKER: (("tdxModuleIdentities", 1, "mrsigner"), MODULE_MAKER.hex()),
}
_QE_IDENTITY_EDITS: dict[D | None, Edit] = {
    D.QE_IDENTITY_OF_SGX: (("id",), "QE"),
    D.QE_IDENTITY_VERSION_3: (("version",), 3),
    D.QE_STATUS_REVOKED: (_STATUS, "Revoked"),
    D.QE_OUT_OF_DATE: (_STATUS, "OutOfDate"),
}
