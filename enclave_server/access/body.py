"""Fields that the gateway sets in a request, spliced in before its last brace: every other byte stays the client's.

Why at the end: a reader that took a doubled name's last value, as Python's does, would read ours. Doubled names do not
occur all the same, because a request that has the field itself is refused or left alone.
"""

from __future__ import annotations

import msgspec

from enclave_server.errors import ApiError

_IDS = b'"return_token_ids":true'
_USAGE = b'"stream_options":{"include_usage":true}'
STREAMS_WITH_OPTION = frozenset({b"/v1/chat/completions", b"/v1/completions"})


class _Fields(msgspec.Struct):
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cache_salt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    return_token_ids: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Fields).decode


def for_engine(body: bytes, path: bytes, salt: bytes | None, *, ids: bool = False) -> tuple[bytes, bool]:
    """What the engine gets, and whether the gateway asked it for token counts that the client did not ask for.

    With a tenant's `salt` it gets that, and streams count tokens; with `ids` its answer has the ids of all tokens.
    """
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body, False  # no JSON object: refused elsewhere, or a form, which has no prefix to share
    added = _ids(fields) if ids else []
    if salt is None:
        return splice(body, added), False
    if fields.cache_salt is not msgspec.UNSET:
        raise ApiError(
            400, "cache_salt_reserved", "The gateway sets this field for each tenant.", param="cache_salt"
        )
    added.append(b'"cache_salt":"%s"' % salt)
    counts = (
        path in STREAMS_WITH_OPTION
        and isinstance(fields.stream, msgspec.Raw)
        and bytes(fields.stream) == b"true"
        and fields.stream_options is msgspec.UNSET
    )
    if counts:
        added.append(_USAGE)
    return splice(body, added), counts


def _ids(fields: _Fields) -> list[bytes]:
    asked = fields.return_token_ids
    if asked is msgspec.UNSET:
        return [_IDS]
    if bytes(asked) == b"true":
        return []
    raise ApiError(
        400,
        "invalid_replay",
        "A digest over token ids needs the ids in the answer.",
        param="return_token_ids",
    )


def splice(body: bytes, members: list[bytes]) -> bytes:
    """A JSON object with more members at its end."""
    if not members:
        return body
    end = body.rindex(b"}")
    start = body[:end].rstrip()
    comma = b"" if start.endswith(b"{") else b","
    return start + comma + b",".join(members) + body[end:]
