"""Which routes there are and what a request to each may have: over real sockets, in front of a fake engine."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.receipt import Outcome, Usage
from enclave_server.content import read_request
from enclave_server.errors import ApiError
from enclave_server.forms import MAX_FIELD, read_form
from enclave_server.peek import one_model
from enclave_server.routes import MAX_TEXT, REFUSED, ROUTES, Kind
from tests.caller import Caller
from tests.servers import MODEL, FakeEngine
from tools.route_table import table

CHAT, FORM = b"/v1/chat/completions", "/v1/audio/transcriptions"
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=xYz"}
PIXEL = "data:image/png;base64,AAAA"


def form(**fields: str) -> bytes:
    parts = [f'name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts.append('name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n\0\r\n\r\n--x')
    return (
        b"".join(f"--xYz\r\nContent-Disposition: form-data; {part}\r\n".encode() for part in parts)
        + b"--xYz--\r\n"
    )


def refused(path: bytes, body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_request(ROUTES[path], {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


def test_the_page_is_the_table() -> None:
    """docs/routes.md is what `python -m tools.route_table` writes."""
    page = Path(__file__).parent.parent.parent.parent / "docs" / "routes.md"
    assert page.read_text() == table()


@pytest.mark.parametrize("path", [path for path in ROUTES if ROUTES[path].kind is Kind.JSON])
def test_each_route(caller: Caller, engine: FakeEngine, path: bytes) -> None:
    """A request reaches the engine's own path with its bytes unchanged, and the answer has a receipt."""
    body = json.dumps({"model": MODEL, **{name: "x" for name in ("prompt",) if name in ROUTES[path].fields}})
    if path == CHAT:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    answer = caller.post(path.decode(), body.encode())
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.usage is not None
    assert (engine.requests[-1].path, engine.requests[-1].body) == (ROUTES[path].engine, body.encode())


@pytest.mark.parametrize("path", ["/v1/tokenizer_info", "/v1/responses/resp_1", "/v1/model/x", "/v1/metrics"])
def test_other_routes(caller: Caller, engine: FakeEngine, path: str) -> None:
    """What is not in the table is a signed 404, and the engine hears nothing of it."""
    for method in ("GET", "POST"):
        answer = caller.call(method, path)
        assert (answer.status, answer.error, answer.outcome) == (404, "not_found", Outcome.ERROR)
    assert engine.requests == []


def test_a_route_that_the_model_does_not_have(caller: Caller, engine: FakeEngine) -> None:
    """vLLM's words for it become an error as OpenAI's clients know them."""
    engine.behaviour.status = 404
    answer = caller.post("/v1/embeddings", {"model": MODEL, "input": "x"})
    assert (answer.status, answer.error, answer.outcome) == (404, "not_found", Outcome.ERROR)


def test_form(caller: Caller, engine: FakeEngine) -> None:
    """A form passes with its own content type; its sampling parameters are in the receipt."""
    body = form(model=MODEL, temperature="0.5", language="en")
    answer = caller.post(FORM, body, BOUNDARY)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.sampling == {"temperature": 0.5}
    assert engine.requests[-1].body == body
    assert engine.requests[-1].headers["Content-Type"] == BOUNDARY["Content-Type"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(model="m", priority="1"), "field_not_allowed"),
        (form(model="m", other="1"), "unknown_field"),
        (form(model="m") + b"after", "invalid_form"),
        (b"before" + form(model="m"), "invalid_form"),
        (form(model="m", prompt="a --xYz b"), "invalid_form"),
        (form(model="m").replace(b'"model"', b'"file"'), "invalid_type"),
        (form(a="1", b="2").replace(b'"b"', b'"a"'), "duplicate_key"),
        (form(model="m").replace(b"; filename", b"; filename*=utf-8''x; filename"), "invalid_form"),
        (form(model="m").replace(b"Content-Type", b"Content-Transfer-Encoding"), "invalid_form"),
        (form(temperature="nan"), "invalid_json"),
        (form(temperature='1,"n":2'), "invalid_form"),
        (form(temperature="hot"), "invalid_json"),
        (form(model="m" * (MAX_FIELD + 1)), "field_too_large"),
        (b"--xYz--", "invalid_form"),
        (b"{}", "invalid_form"),
    ],
)
def test_refused_forms(caller: Caller, engine: FakeEngine, body: bytes, code: str) -> None:
    """A form that two readers could read differently, or with a field that is not taken, is refused."""
    answer = caller.post(FORM, body, BOUNDARY)
    assert (answer.status, answer.error, answer.outcome) == (400, code, Outcome.ERROR)
    assert engine.requests == []


def test_form_as_json(caller: Caller) -> None:
    """JSON where a form belongs is refused by its content type."""
    answer = caller.post(FORM, b"{}", {"Content-Type": "application/json"})
    assert (answer.status, answer.error) == (415, "unsupported_media_type")


@given(st.binary(max_size=200))
def test_any_form(body: bytes) -> None:
    """Any bytes are a form or refused."""
    for whole in (body, form(model="m").replace(b"m\r\n", body)):
        with suppress(ApiError):
            assert isinstance(read_form(whole, BOUNDARY["Content-Type"].encode()), dict)


@pytest.mark.parametrize("path", ["/v1/tokenize", "/v1/detokenize"])
def test_text_that_only_the_gateway_bounds(caller: Caller, engine: FakeEngine, path: str) -> None:
    """One long text would hold the engine's one tokenizer, for whom no context is too short here."""
    field = "prompt" if path == "/v1/tokenize" else "tokens"
    body = b'{"model":"%b","%b":[]}' % (MODEL.encode(), field.encode())
    assert caller.post(path, body.ljust(MAX_TEXT)).outcome is Outcome.COMPLETE
    answer = caller.post(path, body.ljust(MAX_TEXT + 1))
    assert (answer.status, answer.error) == (413, "request_too_large")
    assert len(engine.requests) == 1


@pytest.mark.parametrize("name", [MODEL, "acme/tiny"])
def test_one_model(caller: Caller, engine: FakeEngine, name: str) -> None:
    """What programs ask for before they begin: the engine's entry in its list, in the engine's own bytes, with a receipt."""
    engine.behaviour.models = [MODEL, "acme/tiny"]
    listed = caller.get("/v1/models")
    for path in {f"/v1/models/{name}", f"/v1/models/{quote(name, safe='')}?x"}:
        answer = caller.get(path)
        assert (answer.status, answer.outcome, answer.json["id"]) == (200, Outcome.COMPLETE, name)
        assert answer.body in listed.body
        assert answer.receipt.request.path == path
        assert (engine.requests[-1].method, engine.requests[-1].path) == ("GET", "/v1/models")


@pytest.mark.parametrize("name", ["another", "", MODEL.upper(), f"{MODEL}/", "%FF"])
def test_a_model_that_is_not_served(caller: Caller, name: str) -> None:
    """It is named as the reason, in OpenAI's words for it."""
    answer = caller.get(f"/v1/models/{name}")
    assert (answer.status, answer.error, answer.outcome) == (404, "model_not_found", Outcome.ERROR)
    assert answer.json["error"]["param"] == "model"


def test_one_model_is_only_read(caller: Caller, engine: FakeEngine) -> None:
    """Nothing else can be done with it, and the engine hears nothing of that."""
    answer = caller.call("DELETE", f"/v1/models/{MODEL}")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert engine.requests == []


@given(
    st.binary(max_size=60)
    | st.sampled_from((b'{"data":[{"id":1}]}', b'{"data":[{}]}', b'{"data":{}}', b"[" * 9999))
)
def test_any_list_of_models(listed: bytes) -> None:
    """Whatever an engine calls its list, there is an error that a client knows."""
    with pytest.raises(ApiError) as caught:
        one_model(listed, "x")
    assert caught.value.code in {"engine_aborted", "model_not_found"}


def test_models_without_a_body(caller: Caller, engine: FakeEngine) -> None:
    """A GET that carries a body is refused."""
    assert caller.call("GET", "/v1/models", b"{}").error == "unexpected_body"
    assert engine.requests == []


def test_unknown_field(caller: Caller, engine: FakeEngine) -> None:
    """A field that is not in the list is refused, and the error names it."""
    answer = caller.chat("hi", surprise=1)
    assert (answer.status, answer.error, answer.json["error"]["param"]) == (400, "unknown_field", "surprise")
    assert engine.requests == []


def test_odd_names_are_not_repeated() -> None:
    """A name that is no field's is not sent back."""
    assert refused(CHAT, {"a b\n": 1}).param is None
    assert refused(CHAT, {"x" * 100: 1}).param is None


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_fields(name: str) -> None:
    """Fields that change what runs are refused by name, wherever they are not a route's own."""
    for path, route in ROUTES.items():
        if route.kind is Kind.JSON and name not in route.fields:
            error = refused(path, {name: "1"})
            assert (error.code, error.param) == ("field_not_allowed", name)


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": 0},
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"priority": False},
        {"tools": [{"type": "mcp", "server_url": "https://x"}]},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "file_id": "f"}]}]},
        {"structured_outputs": {"_backend": "x", "json": {}}},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"deep": {"a": 1}}},
    ],
)
def test_what_needs_state_or_a_network(fields: dict[str, Any]) -> None:
    """Nothing is stored, fetched or run elsewhere for /v1/responses."""
    assert refused(b"/v1/responses", {"model": "m", "input": "x", **fields}).code == "field_not_allowed"


@pytest.mark.parametrize(
    "fields", [{"store": False}, {"background": None}, {"priority": 0}, {"prompt": None}]
)
def test_what_is_spelled_out(fields: dict[str, Any]) -> None:
    """Values that change nothing pass, for clients that write them out."""
    read_request(ROUTES[b"/v1/responses"], {}, json.dumps({"input": "x", **fields}).encode())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": 1}},
        {"image_url": "http://x"},
        {"type": "text", "text": "x", "video_url": {"url": "http://x"}},
        {"type": "audio_url", "audio_url": {"url": " data:x"}},
        {"type": "image_url", "image_url": {"url": PIXEL}, "uuid": "1"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"prompt_embeds": "AAAA"},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": ["text"]},
        {"type": "image", "source": {"type": "url", "url": "http://x"}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"url": "http://x"}}]},
    ],
)
def test_refused_parts(part: dict[str, Any]) -> None:
    """Media come along as data: URLs; tensors, files and names in shared caches do not pass, on any route."""
    message = {"role": "user", "content": [part]}
    for path in (CHAT, b"/v1/messages", b"/v1/tokenize", b"/v1/embeddings"):
        assert refused(path, {"messages": [message]}).param == "messages"
    assert refused(b"/v1/rerank", {"query": "x", "documents": [{"content": [part]}]}).param == "documents"


@pytest.mark.parametrize(
    "part",
    [
        "text",
        {"type": "text", "text": "see https://x"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"image_url": "https://is-an-argument"}},
    ],
)
def test_parts(part: Any) -> None:
    """What is sent along passes."""
    read_request(ROUTES[CHAT], {}, json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode())


MESSAGES = (
    b'event: message_start\ndata: {"type":"message_start"}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":3,"output_tokens":4}}\n\n'
)
RESPONSES = b'event: response.created\ndata: {"type":"response.created"}\n\n'
LAST = b'event: response.completed\ndata: {"response":{"text":"data: x","usage":{"input_tokens":3,"output_tokens":4}}}\n\n'


@pytest.mark.parametrize(
    ("path", "stream", "whole"),
    [
        ("/v1/messages", MESSAGES + b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        ("/v1/messages", MESSAGES, False),
        ("/v1/messages", MESSAGES + b"data: [DONE]\n\n", False),
        ("/v1/messages", MESSAGES + b"event: error\ndata: {}\n\nevent: message_stop\ndata: {}\n\n", False),
        ("/v1/responses", RESPONSES + LAST, True),
        ("/v1/responses", RESPONSES, False),
        ("/v1/responses", LAST + RESPONSES, False),
        ("/v1/responses", RESPONSES + b"event: response.failed\ndata: {}\n\n" + LAST, False),
    ],
)
def test_streams_of_other_routes(
    caller: Caller, engine: FakeEngine, path: str, stream: bytes, whole: bool
) -> None:
    """Each route's stream is complete only when it ends as that route's streams do; then its tokens are counted."""
    engine.behaviour.raw_stream = stream
    pieces = caller.watch(path, {"model": MODEL, "stream": True}, lambda: None)
    assert pieces.outcome is (Outcome.COMPLETE if whole else Outcome.ABORTED)
    assert pieces.receipt.usage == (Usage(prompt_tokens=3, completion_tokens=4) if whole else None)
    assert pieces.body.startswith(stream)
