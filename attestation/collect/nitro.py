"""An attestation document from the Nitro Secure Module: one message in, one out, through an ioctl of /dev/nsm."""

from __future__ import annotations

import ctypes
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2

from attestation.collect._device import opened
from attestation.collect._errors import unavailable
from attestation.nitro.document import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_NONCE_BYTES,
    MAX_PUBLIC_KEY_BYTES,
    MAX_USER_DATA_BYTES,
)

DEVICE = Path("/dev/nsm")
_ANSWER_BYTES = 12 * 1024  # NSM_RESPONSE_MAX_SIZE

Ioctl = Callable[[int, int, ctypes.Structure], int]


class _Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Message(ctypes.Structure):
    _fields_ = [("request", _Part), ("response", _Part)]


NSM = 3 << 30 | ctypes.sizeof(_Message) << 16 | 0x0A << 8


def collect_nitro(
    *,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
    public_key: bytes | None = None,
    device: Path = DEVICE,
    ioctl: Ioctl = fcntl.ioctl,
) -> bytes:
    """A signed document that carries these bytes."""
    fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
    limits = {"user_data": MAX_USER_DATA_BYTES, "nonce": MAX_NONCE_BYTES, "public_key": MAX_PUBLIC_KEY_BYTES}
    for name, value in fields.items():
        if value is not None and len(value) > limits[name]:
            raise ValueError(f"{name} has at most {limits[name]} bytes, not {len(value)}")
    answer = _call(cbor2.dumps({"Attestation": fields}), device, ioctl)
    match answer:
        case {"Attestation": {"document": bytes(document)}} if 0 < len(document) <= MAX_DOCUMENT_BYTES:
            return document
        case {"Error": str(error)}:
            raise unavailable(f"the Nitro Secure Module refused: {error[:100]}")
    raise unavailable("the Nitro Secure Module's answer is no document")


def _call(request: bytes, device: Path, ioctl: Ioctl) -> Any:
    asked, answer = (
        ctypes.create_string_buffer(request, len(request)),
        ctypes.create_string_buffer(_ANSWER_BYTES),
    )
    message = _Message(
        request=_Part(ctypes.addressof(asked), len(request)),
        response=_Part(ctypes.addressof(answer), _ANSWER_BYTES),
    )
    advice = "Only a Nitro enclave has it: load nsm, and run with CAP_SYS_ADMIN"
    with opened(device, advice) as descriptor:
        ioctl(descriptor, NSM, message)
    size = message.response.length
    if size > _ANSWER_BYTES:
        raise unavailable(f"the Nitro Secure Module says that its answer has {size} bytes")
    try:
        return cbor2.loads(answer.raw[:size], max_depth=MAX_DEPTH)
    except Exception as exc:  # cbor2 lets errors of the types it builds through
        raise unavailable(f"the Nitro Secure Module's answer is not CBOR ({type(exc).__name__})") from exc
