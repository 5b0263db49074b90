"""Members that the gateway sets in a request, spliced in before its last brace: every other byte stays the client's.

Why at the end: a reader that took a doubled name's last value, as Python's does, would read ours. Doubled names do not
occur all the same, because a request that has the member itself is refused or left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_server.errors import ApiError

_IDS = b'"return_token_ids":true'
_USAGE = b'"stream_options":{"include_usage":true}'
STREAMS_WITH_OPTION = frozenset({b"/v1/chat/completions", b"/v1/completions"})


def for_engine(
    body: bytes, members: Mapping[str, Any], path: bytes, salt: bytes | None, *, ids: bool = False
) -> tuple[bytes, bool]:
    """What the engine gets for a JSON object, and whether the gateway asked it for token counts that the client did not ask for.

    `members` are those of `body`. With a tenant's `salt` the engine gets that, and streams count tokens; with `ids` its
    answer has the ids of all tokens.
    """
    added = _ids(members) if ids else []
    if salt is None:
        return splice(body, added), False
    if "cache_salt" in members:
        raise ApiError(
            400, "cache_salt_reserved", "The gateway sets this field for each tenant.", param="cache_salt"
        )
    added.append(b'"cache_salt":"%s"' % salt)
    counts = members.get("stream") is True and "stream_options" not in members and path in STREAMS_WITH_OPTION
    if counts:
        added.append(_USAGE)
    return splice(body, added), counts


def _ids(members: Mapping[str, Any]) -> list[bytes]:
    if "return_token_ids" not in members:
        return [_IDS]
    if members["return_token_ids"] is True:
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
