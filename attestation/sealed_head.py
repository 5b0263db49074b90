"""Method, target and headers of a sealed request, status and headers of its answer: small JSON documents, strictly read.

What belongs to one connection (lengths, codings, `Host`) stays outside: nothing in a head can change where a body ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from attestation._json import dump_json, parse_json_object, quoted
from attestation.checks import Check
from attestation.errors import MalformedError

Headers = tuple[tuple[str, str], ...]
MAX_HEAD_BYTES = 64 * 1024
#: Fields of the connection, and not of the message (RFC 9110 §7.6.1): never inside a seal.
OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_METHOD = re.compile(r"[A-Z]{1,16}")
_TARGET = re.compile(r"/[!-\"$-~]*")  # visible ASCII, and no fragment
_OF_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^_`|~-"  # RFC 9110 §5.6.2, in lower case
_UNESCAPED = bytes({*range(0x20, 0x7F)} - {*b'"\\'})  # RFC 8259 §7, of ASCII
_OF_VALUES = bytes({*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)})  # RFC 9110 §5.5; a character is a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """What is asked: the target is path and query, as in a request line."""

    method: str
    target: str
    headers: Headers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """How it is answered."""

    status: int
    headers: Headers = ()


def dump_head(head: RequestHead | ResponseHead) -> bytes:
    """The JSON text, written by hand since every exchange has two; the caller has only put in what the reader takes."""
    if isinstance(head, RequestHead):
        what = f'"method":{quoted(head.method)},"target":{quoted(head.target)}'
    else:
        what = f'"status":{head.status}'
    return f'{{{what},"headers":{_dump_pairs(head.headers)}}}'.encode()


def _dump_pairs(pairs: Headers) -> str:
    """What `dump_json` writes, which looks at each character; a receipt alone has more than a thousand, none to be escaped."""
    texts = "".join([name + text for name, text in pairs])
    if texts.isascii() and not texts.encode().translate(None, _UNESCAPED):
        return "[" + ",".join([f'["{name}","{text}"]' for name, text in pairs]) + "]"
    return dump_json(pairs)


def parse_request_head(data: bytes, *, limit: int) -> RequestHead:
    match _table(data, limit, "method", "target"):
        case {"method": str(method), "target": str(target), "headers": headers} if _METHOD.fullmatch(
            method
        ) and _TARGET.fullmatch(target):
            return RequestHead(method=method, target=target, headers=_headers(headers))
    raise MalformedError(Check.SEALED_FORMAT, "the head has no method and target as HTTP writes them")


def parse_response_head(data: bytes, *, limit: int) -> ResponseHead:
    match _table(data, limit, "status"):
        case {"status": int(status), "headers": headers} if 200 <= status <= 599:
            return ResponseHead(status=status, headers=_headers(headers))
    raise MalformedError(Check.SEALED_FORMAT, "the head has no status from 200 to 599")


def _table(data: bytes, limit: int, *names: str) -> dict[str, Any]:
    table = parse_json_object(data, Check.SEALED_FORMAT, "the head", limit=limit)
    if table.keys() != {*names, "headers"}:
        raise MalformedError(Check.SEALED_FORMAT, f"expected {', '.join(names)} and headers in the head")
    return table


def _headers(value: object) -> Headers:
    if not isinstance(value, list) or not all(map(_is_pair, value)):
        raise MalformedError(Check.SEALED_FORMAT, "headers must be a list of pairs of texts")
    names = [name for name, _ in value]
    if not all(names) or not _made_of(_OF_NAMES, names):
        raise MalformedError(Check.SEALED_FORMAT, "a header's name is not as HTTP writes it, in lower case")
    if not _made_of(_OF_VALUES, [text for _, text in value]):
        raise MalformedError(Check.SEALED_FORMAT, "a header's value is not as HTTP writes it")
    if foreign := OF_THE_CONNECTION.intersection(names):
        raise MalformedError(
            Check.SEALED_FORMAT, f"the headers {sorted(foreign)} belong to a connection, not into a seal"
        )
    return tuple([(name, text) for name, text in value])


def _is_pair(pair: object) -> bool:
    return type(pair) is list and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is str


def _made_of(characters: bytes, texts: list[str]) -> bool:
    try:
        return not "".join(texts).encode("latin-1").translate(None, characters)
    except UnicodeEncodeError:
        return False
