"""Limits, admission and the cache salt, over real sockets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from attestation.receipt import Outcome
from tests.caller import Answer, Caller
from tests.processes import until
from tests.servers import MODEL, FakeEngine

CHAT = "/v1/chat/completions"


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def test_requests_a_minute(start: Any, calling: Any, operator: Any) -> None:
    """The request after the last allowed one is 429, signed, and says when to come again; another key is not touched."""
    one, two = operator.create("one", "--requests-per-minute", "2"), operator.create("two")
    gateway = start()
    caller = calling(gateway, one)
    assert [caller.get("/v1/models").status for _ in range(3)] == [200, 200, 429]
    answer = caller.get("/v1/models")
    assert (answer.error, answer.outcome) == ("request_rate_limit", Outcome.ERROR)
    assert answer.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert calling(gateway, two).get("/v1/models").status == 200


def test_tokens_a_minute(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """Tokens that the engine counted are charged, also for a stream that did not ask for a count."""
    key = operator.create("few", "--tokens-per-minute", "6")
    caller = calling(start(), key)
    assert caller.chat("a stream", stream=True).outcome is Outcome.COMPLETE  # 2 and 5 tokens
    answer = caller.chat("again")
    assert (answer.status, answer.error) == (429, "token_rate_limit")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(engine.requests) == 1


def test_tokens_of_a_stream_left_early(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """A client cannot get around its token limit by going away before the count."""
    engine.behaviour.delay, engine.behaviour.chunks = 0.05, 50
    key = operator.create("few", "--tokens-per-minute", "5")
    caller = calling(start(), key)
    with caller.http.stream("POST", CHAT, json=ask("x" * 100, stream=True)) as response:
        next(response.iter_raw())
    until(lambda: engine.cancelled)
    until(lambda: caller.get("/v1/models").status == 429)


def test_limits_changed_while_running(start: Any, calling: Any, operator: Any) -> None:
    """`keys limit` acts on a running gateway, and 0 takes a limit away again."""
    key = operator.create("one", "--requests-per-minute", "1")
    caller = calling(start(), key)
    assert [caller.get("/v1/models").status for _ in range(2)] == [200, 429]
    [listed] = json.loads(operator.keys("list", "--json"))
    operator.keys("limit", listed["id"], "--requests-per-minute", "0")
    until(lambda: caller.get("/v1/models").status == 200)


def test_settings_give_the_default(start: Any, calling: Any, operator: Any) -> None:
    """A key without limits of its own has those of the settings."""
    key = operator.create()
    caller = calling(start(key_requests_per_minute=1), key)
    assert [caller.get("/v1/models").status for _ in range(2)] == [200, 429]


def test_requests_at_once(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """A key has so many requests at once; the next is refused at once, and may come when one has ended."""
    key = operator.create("two", "--concurrency", "2")
    caller = calling(start(), key)
    answers = at_once(caller, engine, 4, ended=2)
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.error for answer in refused] == ["concurrency_limit"] * 2
    assert refused[0].headers["retry-after"] == "1"
    assert caller.chat("after").status == 200


def at_once(caller: Caller, engine: FakeEngine, count: int, *, ended: int) -> list[Answer]:
    """So many answers, of requests under way together: the engine holds its own until so many others have ended."""
    engine.behaviour.delay = 60
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(caller.chat, "x" * 1000) for _ in range(count)]
        try:
            until(lambda: sum(each.done() for each in asked) >= ended)
        finally:
            engine.behaviour.delay = 0
        return [each.result() for each in asked]


@pytest.mark.parametrize("access", ["keys", "open"])
def test_queue_is_bounded(start: Any, calling: Any, operator: Any, engine: FakeEngine, access: str) -> None:
    """One in work, one waiting, and the rest is refused with 503 before their bodies are read."""
    key = operator.create()
    gateway = start(access=access, max_in_flight=1, max_queued=1)
    answers = at_once(calling(gateway, key), engine, 3, ended=1)
    assert sorted(answer.status for answer in answers) == [200, 200, 503]
    refused = next(answer for answer in answers if answer.status == 503)
    assert (refused.status, refused.error) == (503, "overloaded")
    assert refused.headers["retry-after"] == "2"
    assert refused.receipt.request.length == 0


def test_queue_that_moves_too_slowly(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """Nobody waits longer than `queue_seconds` for a place."""
    key = operator.create()
    caller = calling(start(max_in_flight=1, queue_seconds=0.1), key)
    assert sorted(answer.status for answer in at_once(caller, engine, 2, ended=1)) == [200, 503]


def test_a_salt_for_each_tenant(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """Two keys of one tenant share a cache, another tenant and another boot do not; all other bytes are the client's."""
    keys = [
        operator.create("a", "--tenant", "acme"),
        operator.create("b", "--tenant", "acme"),
        operator.create("c"),
    ]
    gateway = start()
    body = b'{ "messages":[{"content":"h\\u00e9llo","role":"user"}],"model":"fake-model" }  \n'
    for key in keys:
        assert calling(gateway, key).post(CHAT, body).status == 200
    gateway.restart()
    calling(gateway, keys[0]).post(CHAT, body)
    salts = [json.loads(seen.body)["cache_salt"] for seen in engine.requests]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
    sent = engine.requests[0].body
    assert sent == body.replace(b" }  \n", b',"cache_salt":"%s"}  \n' % salts[0].encode())


@pytest.mark.parametrize("name", [b"cache_salt", b"cache\\u005fsalt"])
def test_a_clients_own_salt(start: Any, calling: Any, operator: Any, engine: FakeEngine, name: bytes) -> None:
    """A salt from the client is refused, however its name is written; in open mode it is passed on."""
    body = b'{"model":"fake-model","messages":[{"content":"x"}],"%s":"mine"}' % name
    key = operator.create()
    answer = calling(start(), key).post(CHAT, body)
    assert (answer.status, answer.error, answer.json["error"]["param"]) == (
        400,
        "cache_salt_reserved",
        "cache_salt",
    )
    assert engine.requests == []


def test_a_count_that_was_asked_for_stays(start: Any, calling: Any, operator: Any) -> None:
    """A client that asks for token counts in its stream gets them as ever."""
    key = operator.create()
    answer = calling(start(), key).chat("one", stream=True, stream_options={"include_usage": True})
    assert answer.events[-2]["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize("split", [False, True], ids=["whole events", "torn reads"])
def test_the_hidden_count(start: Any, calling: Any, operator: Any, engine: FakeEngine, split: bool) -> None:
    """The count that the gateway asked for is taken out of the stream as a whole event, and nothing else is."""
    engine.behaviour.split = split
    engine.behaviour.text = '"choices":[],"usage":{ said the model'
    key = operator.create()
    caller = calling(start(), key)
    answer = caller.chat("one", stream=True)
    engine.behaviour.split = False
    plain = caller.chat("one", stream=True, stream_options={"include_usage": False})
    assert answer.body == plain.body
    assert answer.receipt.usage is not None
    assert plain.receipt.usage is None


def test_token_ids_beside_the_count(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """A request for a digest over token ids gets it with a key, too, beside the tenant's salt and the hidden count."""
    key = operator.create()
    caller = calling(start(), key)
    body = ask("one", stream=True)
    answer = caller.post(CHAT, body, {"Attested-Replay": "1"})
    assert answer.receipt.tokens is not None
    assert answer.receipt.usage.completion_tokens == len("You said: one")
    assert b"usage" not in answer.body
    sent = json.loads(engine.requests[-1].body)
    assert sent.keys() - body.keys() == {"cache_salt", "stream_options", "return_token_ids"}


def test_a_form_is_limited_and_passes_unchanged(
    start: Any, calling: Any, operator: Any, engine: FakeEngine
) -> None:
    """Audio counts as any request does; a tenant's salt belongs into JSON and is not put into a form."""
    key = operator.create("one", "--requests-per-minute", "1")
    caller = calling(start(), key)
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"a":1}\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answers = [caller.post("/v1/audio/transcriptions", part, kind) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert [seen.body for seen in engine.requests] == [part]
