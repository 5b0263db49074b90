"""A form with a file (RFC 7578), read to see which fields it has; its bytes pass through.

Only what clients write is taken, so that no other reader can find other parts: each boundary where a part begins, no text
around them, one Content-Disposition a part, no name twice.
"""

from __future__ import annotations

import re
from typing import Any

from enclave_server.errors import ApiError
from enclave_server.peek import SAMPLING, read_object

_CONTENT_TYPE = re.compile(
    rb"multipart/form-data; ?boundary=(?:([\w'+.-]{1,70})|\"([\w'()+,./:=?-]{1,70})\")",
    re.IGNORECASE | re.ASCII,
)
_HEAD = re.compile(
    rb"content-disposition: form-data; name=\"([\w\[\]]{1,64})\"(; filename=\"[^\"\\\r\n\0]{0,255}\")?"
    rb"(?:\r\ncontent-type: [\w./+;= -]{1,100})?",
    re.IGNORECASE | re.ASCII,
)
_PLAIN = frozenset(SAMPLING) | {"stream"}
MAX_FIELD = 64 * 1024  # bytes of anything but the file


def read_form(body: bytes, content_type: bytes) -> dict[str, Any]:
    """The fields by name; the file's value is empty. Numbers and truth values are as JSON writes them."""
    known = _CONTENT_TYPE.fullmatch(content_type)
    if known is None:
        raise ApiError(415, "unsupported_media_type", "This route takes multipart/form-data.")
    mark = b"--" + (known[1] or known[2])
    first, last = mark + b"\r\n", b"\r\n" + mark + b"--"
    whole = body.removesuffix(b"\r\n")
    if not whole.startswith(first) or not whole.endswith(last):
        raise _malformed()
    parts = whole[len(first) : -len(last)].split(b"\r\n" + first)
    if body.count(mark) != len(parts) + 1:
        raise _malformed()
    fields: dict[str, Any] = {}
    for part in parts:
        head, blank, value = part.partition(b"\r\n\r\n")
        told = _HEAD.fullmatch(head)
        if not blank or told is None:
            raise _malformed()
        name = told[1].decode()
        if (name == "file") != (told[2] is not None):
            raise ApiError(400, "invalid_type", "`file` is a file, and nothing else is one.", param=name)
        if name in fields and not name.endswith("[]"):
            raise ApiError(400, "duplicate_key", "The form has a field twice.", param=name)
        fields[name] = "" if name == "file" else _value(name, value)
    return fields


def _value(name: str, value: bytes) -> Any:
    if len(value) > MAX_FIELD:
        raise ApiError(400, "field_too_large", f"A field may have {MAX_FIELD} bytes.", param=name)
    if name in _PLAIN:
        members = read_object(b'{"value":' + value + b"}")
        if len(members) > 1:
            raise _malformed()
        return members["value"]
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _malformed() from None


def _malformed() -> ApiError:
    return ApiError(400, "invalid_form", "The request's body is not a form, or could be read in two ways.")
