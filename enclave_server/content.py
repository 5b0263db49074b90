"""Whether a request may have the fields it has: names first, and what lies deeper where it matters.

Deeper it matters where a field would make the engine fetch, load or remember something: addresses of media, tensors,
names in caches that tenants share, tools that run elsewhere, other templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from enclave_server.asgi import Fields
from enclave_server.errors import ApiError, too_large
from enclave_server.forms import read_form
from enclave_server.peek import DEFAULTS, read_object, sampling_of
from enclave_server.routes import HARMLESS, REFUSED, Kind, Route, names

_NAME = re.compile(r"\w[\w.\[\]-]{0,63}", re.ASCII)
# Types of messages, items and parts. Files and references to stored items are missing, as are tensors.
_TYPES = names(
    """audio_url function_call function_call_output image image_url input_audio input_image input_text message output_text
    reasoning reasoning_text redacted_thinking refusal summary_text text thinking tool_addition tool_reference tool_removal
    tool_result tool_use video_url"""
)
_ADDRESSES = ("image_url", "audio_url", "video_url")
_NEVER = names(
    """audio_embeds file file_data file_id file_url image_embeds image_pil prompt_embeds uuid video_embeds"""
)
_TOOLS = (None, "function", "custom")
_STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
_STRUCTURED = names(
    """json regex choice grammar json_object structural_tag disable_any_whitespace disable_additional_properties
    whitespace_pattern"""
)


def read_request(
    route: Route, fields: Fields, body: bytes
) -> tuple[dict[str, Any] | None, dict[str, Any], str]:
    """Its members if it is JSON, the sampling parameters in effect, and the content type that the engine is told.

    Refusals are 4xx."""
    content_type = "application/json"
    if route.most is not None and len(body) > route.most:
        raise too_large(route.most)
    if route.kind is Kind.NOTHING:
        if body:
            raise ApiError(400, "unexpected_body", "A request to this route has no body.")
        return None, {}, content_type
    if route.kind is Kind.FORM:
        told = fields.get(b"content-type", [])
        members = read_form(body, told[0] if len(told) == 1 else b"")
        content_type = told[0].decode("ascii")
    else:
        members = read_object(body)
    check_fields(route, members)
    samples = route.kind is Kind.JSON and "temperature" in route.fields
    sampling = sampling_of(members, DEFAULTS if samples else {})
    return members if route.kind is Kind.JSON else None, sampling, content_type


def check_fields(route: Route, fields: Mapping[str, Any]) -> None:
    """Refuse with a 400 that names the field."""
    if not fields.keys() <= route.fields:
        _check_names(route, fields)
    for name, value in fields.items():
        if value is not None and (check := _CHECKS.get(name)) is not None:
            check(name, value)


def refuse(field: str, reason: str) -> NoReturn:
    """A 400 for a field that exists, and is not for clients."""
    raise ApiError(400, "field_not_allowed", f"This field is not taken: {reason}.", param=field)


def _check_names(route: Route, fields: Mapping[str, Any]) -> None:
    for name in fields.keys() - route.fields:
        if name not in REFUSED:
            param = name if _NAME.fullmatch(name) else None
            raise ApiError(400, "unknown_field", "This route has no such field.", param=param)
        if not _harmless(name, fields[name]):
            refuse(name, REFUSED[name])


def _harmless(name: str, value: Any) -> bool:
    return any(type(value) is type(known) and value == known for known in HARMLESS.get(name, ()))


def _check_content(name: str, value: Any) -> None:
    """Messages, items and parts, at any depth where they can have more of them."""
    if type(value) is list:
        for part in value:
            if type(part) is dict or type(part) is list:
                _check_content(name, part)
    elif type(value) is dict:
        if "type" in value or not value.keys().isdisjoint(_WATCHED):
            _check_part(name, value)
        for inner in ("content", "output"):
            if type(deeper := value.get(inner)) is list or type(deeper) is dict:
                _check_content(name, deeper)


def _check_part(name: str, part: dict[str, Any]) -> None:
    kind = part.get("type")
    if kind is not None and (type(kind) is not str or kind not in _TYPES):
        refuse(name, "content of this type is not served")
    if not part.keys().isdisjoint(_NEVER):
        refuse(name, "content is sent along, not referred to")
    for address in _ADDRESSES:
        if (media := part.get(address)) is not None:
            url = media.get("url") if type(media) is dict else media
            if type(url) is not str or not url.startswith("data:"):
                refuse(name, "the engine has no network: media are data: URLs")
    source = part.get("source")
    if source is not None and (type(source) is not dict or source.get("type") != "base64"):
        refuse(name, "the engine has no network: a source is base64")


_WATCHED = _NEVER.union(_ADDRESSES, {"source"})


def _check_tools(name: str, value: Any) -> None:
    for tool in _dicts(value):
        if tool.get("type") not in _TOOLS:
            refuse(name, "tools run at the client, as functions")


def _only(names: frozenset[str]) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if type(value) is dict and not value.keys() <= names:
            refuse(name, "one of its members is not for clients")

    return check


def _check_template_arguments(name: str, value: Any) -> None:
    if type(value) is dict and "chat_template" in value:
        refuse(name, REFUSED["chat_template"])
    if type(value) is dict and any(type(item) in (dict, list) for item in value.values()):
        refuse(name, "arguments of a template are plain values")


def _check_store(name: str, value: Any) -> None:
    if value is not False:
        refuse(name, REFUSED[name])


def _dicts(value: Any) -> Iterable[dict[str, Any]]:
    return (item for item in value if type(item) is dict) if type(value) is list else ()


# What docs/routes.md tells of what lies deeper.
MEMBERS: Mapping[str, frozenset[str]] = {
    "content": _TYPES,
    "stream_options": _STREAM_OPTIONS,
    "structured_outputs": _STRUCTURED,
}
_CONTENT = names("messages input system query queries documents items data_1 data_2 text_1 text_2")
_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(_CONTENT, _check_content),
    "tools": _check_tools,
    "stream_options": _only(_STREAM_OPTIONS),
    "structured_outputs": _only(_STRUCTURED),
    "chat_template_kwargs": _check_template_arguments,
    "store": _check_store,
}
