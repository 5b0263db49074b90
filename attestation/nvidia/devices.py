"""NVIDIA's JSON list of evidence, one object per GPU or NVSwitch, as its SDKs write it and its service reads it.

    [ { "arch": "HOPPER", "evidence": base64, "certificate": base64 of PEM, "nonce": hex, "state": {…} }, … ]

`state` is ours: what the driver says of confidential computing, which no GPU signs. It counts as much as the machine
that says it: the list's digest is in what the CPU signs. Other members, such as NVIDIA's versions, are not read:
the signed report has them.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attestation._json import parse_json
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.nvidia.evidence import NONCE_BYTES, Arch

MAX_LIST_BYTES = 2 * 1024 * 1024
MAX_DEVICES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """Confidential computing as NVML reports it inside the machine."""

    confidential: bool  # nvmlSystemGetConfComputeState: the feature is on
    devtools: bool  # the same: developer tools are enabled, so memory can be read
    ready: bool  # nvmlSystemGetConfComputeGpusReadyState: accepts work


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """One entry of the list, not yet believed."""

    report: bytes
    chain: bytes  # PEM, leaf first
    arch: Arch
    nonce: bytes | None = None  # said to have been asked; the report has the one that counts
    state: GpuState | None = None


def parse_list(data: bytes) -> tuple[GpuDevice, ...]:
    """Read the list. Judges nothing, and reads no report: `parse_evidence` does."""
    items = parse_json(data, Check.GPU_FORMAT, "GPU evidence list", limit=MAX_LIST_BYTES)
    if not isinstance(items, list) or not 0 < len(items) <= MAX_DEVICES:
        raise MalformedError(
            Check.GPU_FORMAT, f"GPU evidence list: expected a list of 1 to {MAX_DEVICES} devices"
        )
    return tuple(_device(item, f"device {number}") for number, item in enumerate(items))


def dump_list(devices: Sequence[GpuDevice]) -> bytes:
    """The list that `parse_list` reads."""
    return json.dumps([_item(device) for device in devices], separators=(",", ":")).encode()


def _item(device: GpuDevice) -> dict[str, Any]:
    item: dict[str, Any] = {
        "arch": str(device.arch),
        "evidence": b64encode(device.report).decode(),
        "certificate": b64encode(device.chain).decode(),
    }
    if device.nonce is not None:
        item["nonce"] = device.nonce.hex()
    if device.state is not None:
        item["state"] = asdict(device.state)
    return item


def _device(item: object, what: str) -> GpuDevice:
    if not isinstance(item, dict):
        raise MalformedError(Check.GPU_FORMAT, f"{what} must be an object")
    arch = item.get("arch")
    if not isinstance(arch, str) or arch.upper() not in list(Arch):
        raise MalformedError(
            Check.GPU_FORMAT, f"{what}: unknown architecture {arch!r}; known are {', '.join(Arch)}"
        )
    return GpuDevice(
        report=_base64(item, "evidence", what),
        chain=_base64(item, "certificate", what),
        arch=Arch(arch.upper()),
        nonce=_nonce(item, what),
        state=_state(item.get("state"), what),
    )


def _base64(item: Mapping[str, object], name: str, what: str) -> bytes:
    try:
        return b64decode(str(item[name]), validate=True)
    except (KeyError, ValueError) as exc:
        raise MalformedError(Check.GPU_FORMAT, f"{what}: {name} must be base64") from exc


def _nonce(item: Mapping[str, object], what: str) -> bytes | None:
    if "nonce" not in item:
        return None
    try:
        nonce = bytes.fromhex(str(item["nonce"]))
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise MalformedError(Check.GPU_FORMAT, f"{what}: nonce must be {NONCE_BYTES} bytes of hex")
    return nonce


def _state(value: object, what: str) -> GpuState | None:
    match value:
        case None:
            return None
        case {
            "confidential": bool(confidential),
            "devtools": bool(devtools),
            "ready": bool(ready),
            **rest,
        } if not rest:
            return GpuState(confidential=confidential, devtools=devtools, ready=ready)
    raise MalformedError(
        Check.GPU_FORMAT, f"{what}: state must say confidential, devtools and ready, and nothing else"
    )
