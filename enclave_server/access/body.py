"""Fields that the gateway sets in a request, spliced in before its last brace: every other byte stays the client's.

Why at the end: a reader that took a doubled name's last value, as Python's does, would read ours. Doubled names do not
occur all the same, because a request that has the field itself is refused or left alone.
"""

from __future__ import annotations

import msgspec

from enclave_server.errors import ApiError

_USAGE = b'"stream_options":{"include_usage":true}'
STREAMS_WITH_OPTION = frozenset({b"/v1/chat/completions", b"/v1/completions"})


class _Fields(msgspec.Struct):
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cache_salt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Fields).decode


def for_engine(body: bytes, path: bytes, salt: bytes) -> tuple[bytes, bool]:
    """What the engine gets, and whether the gateway asked it for token counts that the client did not ask for."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body, False  # no JSON object: refused elsewhere, or a form, which has no prefix to share
    if fields.cache_salt is not msgspec.UNSET:
        raise ApiError(
            400, "cache_salt_reserved", "The gateway sets this field for each tenant.", param="cache_salt"
        )
    added = [b'"cache_salt":"%s"' % salt]
    counts = (
        path in STREAMS_WITH_OPTION
        and isinstance(fields.stream, msgspec.Raw)
        and bytes(fields.stream) == b"true"
        and fields.stream_options is msgspec.UNSET
    )
    if counts:
        added.append(_USAGE)
    return splice(body, added), counts


def splice(body: bytes, members: list[bytes]) -> bytes:
    """A JSON object with more members at its end."""
    end = body.rindex(b"}")
    start = body[:end].rstrip()
    comma = b"" if start.endswith(b"{") else b","
    return start + comma + b",".join(members) + body[end:]
