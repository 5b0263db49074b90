"""Write docs/vectors/binding.json and docs/vectors/receipt.json: what holds, and what every verifier must refuse.

    python -m tools.receipt_vectors

Keys, nonces and texts are fixed, and Ed25519 signs the same text in the same way: the files come out the same each time.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation._b64 import b64url_encode
from attestation.binding import (
    PURPOSE,
    Engine,
    Image,
    Keys,
    Model,
    Statement,
    Topology,
    gpu_nonce,
    report_data,
)
from attestation.checks import Check
from attestation.receipt import (
    COMMENT,
    Outcome,
    Receipt,
    Request,
    Response,
    RunningDigest,
    ServedModel,
    Usage,
)
from attestation.tokens import RunningTokens

FOLDER = Path(__file__).parent.parent / "docs/vectors"
TIME = 1_795_262_400  # 2026-11-21T12:00:00Z
PATH = "/v1/chat/completions"
PROMPT = '{"model":"m","messages":[{"role":"user","content":"Grüße!"}]}'
ANSWER = '{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hé"}}]}'
EVENTS = 'data: {"choices":[{"index":0,"delta":{"content":"hé"}}]}\n\ndata: [DONE]\n\n'
ERROR = '{"error":{"message":"no such model","code":"model_not_found"}}'


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that anybody can make again."""
    return b"".join(sha256(f"{name}/{i}".encode()).digest() for i in range(-(-size // 32)))[:size]


KEY = Ed25519PrivateKey.from_private_bytes(fixed("receipt"))
NONCE = fixed("request nonce")


def statement(*, log: bool = False, topology: Topology | None = None) -> bytes:
    """One enclave's statement, with or without a log of receipts and a topology; only its receipt key is used here."""
    keys = {
        spec.name: fixed(spec.name, spec.metadata["size"])
        for spec in fields(Keys)
        if log or spec.default is MISSING
    }
    return Statement(
        v=1,
        purpose=PURPOSE,
        keys=Keys(**{**keys, "receipt_ed25519": KEY.public_key().public_bytes_raw()}),
        not_before=TIME - 3600,
        not_after=TIME + 7 * 86400,
        model=Model(names=("m", "größer"), digest=fixed("model")),
        engine=Engine(name="vllm", version="0.32.0", flags=("--seed", "0"), topology=topology),
        config=fixed("config"),
        image=Image(build="b", source="s"),
    ).to_bytes()


def binding() -> dict[str, Any]:
    """Statements with the two digests that commit to them."""
    plain, logged, nonce = statement(), statement(log=True), fixed("evidence nonce")
    shared = Topology(
        external=True, nodes=2, replicas=3, data_parallel=1, tensor_parallel=8, pipeline_parallel=2
    )
    gpu = '[{"arch":"HOPPER","evidence":"AA==","certificate":"AA==","nonce":"00"}]'
    return {
        "about": "docs/protocol.md, section 2; digests in hex, texts as UTF-8; made by tools/receipt_vectors.py",
        "cases": [
            {
                "name": name,
                "nonce": nonce.hex(),
                "statement": text.decode(),
                "gpu_evidence": evidence,
                "statement_digest": sha256(text).hexdigest(),
                "report_data": report_data(nonce, text, evidence.encode()).hex(),
                "gpu_nonce": gpu_nonce(nonce, text).hex(),
            }
            for name, text, evidence in (
                ("without GPUs", plain, ""),
                ("with a GPU", plain, gpu),
                ("with a log of receipts", logged, ""),
                (
                    "with an engine on two machines that the gateway did not start",
                    statement(topology=shared),
                    "",
                ),
            )
        ],
    }


def receipt_for(request: str, answer: str, status: int = 200, **changes: Any) -> Receipt:
    asked, told = RunningDigest(NONCE, request.encode()), RunningDigest(NONCE, answer.encode())
    return replace(
        Receipt(
            id="0191-1",
            counter=1,
            time=TIME,
            request=Request(method="POST", path=PATH, digest=asked.digest(), length=asked.length),
            response=Response(status=status, digest=told.digest(), length=told.length),
            outcome=Outcome.COMPLETE,
            model=ServedModel(name="m", digest=fixed("model")),
            usage=Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=0),
            sampling={"temperature": 0.5, "top_p": 1, "seed": 7},
            statement=sha256(statement()).digest(),
        ),
        **changes,
    )


def case(name: str, answer: str, token: str, *, status: int = 200, stream: bool = False) -> dict[str, Any]:
    """An exchange as a client sees it. A stream has its receipt in its body."""
    seen = answer + comment(token) if stream else answer
    return {
        "name": name,
        "method": "POST",
        "path": PATH,
        "nonce": NONCE.hex(),
        "request": PROMPT,
        "status": status,
        "stream": stream,
        "response": seen,
        "receipt": None if stream else token,
    }


def accepted() -> list[dict[str, Any]]:
    error = receipt_for("", ERROR, 404, outcome=Outcome.ERROR, usage=None, sampling={})
    return [
        case("a plain answer", ANSWER, receipt_for(PROMPT, ANSWER).sign(KEY)),
        case("a stream", EVENTS, receipt_for(PROMPT, EVENTS).sign(KEY), stream=True),
        checkpointed(),
        case("a refusal before the body was read", ERROR, error.sign(KEY), status=404),
        with_ids(),
    ]


IDS = ([1, 15043, 2**32 - 1], [29882, 2])


def tokens(*choices: tuple[list[int], list[int]]) -> dict[str, Any]:
    """Token ids of prompt and output, choice by choice, and the digest that a receipt has of them."""
    running = RunningTokens()
    for index, (prompt, output) in enumerate(choices):
        running.prompt(prompt, index)
        running.output(index, output)
    return {"nonce": NONCE.hex(), "choices": choices, "digest": (running.digest(NONCE) or b"").hex()}


def with_ids() -> dict[str, Any]:
    answer = json.dumps({"prompt_token_ids": IDS[0], "choices": [{"index": 0, "token_ids": IDS[1]}]})
    receipt = receipt_for(PROMPT, answer, tokens=bytes.fromhex(tokens(IDS)["digest"]))
    return case("an answer with a digest over token ids", answer, receipt.sign(KEY))


def comment(token: str) -> str:
    return f"{COMMENT.decode()}{token}\n\n"


def checkpointed(numbers: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """A stream with a checkpoint after its first event; `numbers` make the enclave count wrongly."""
    cut = EVENTS.index("data: [DONE]")
    first = receipt_for(PROMPT, EVENTS[:cut], outcome=Outcome.CHECKPOINT, checkpoints=numbers[0]).sign(KEY)
    last = receipt_for(PROMPT, EVENTS, checkpoints=numbers[1]).sign(KEY)
    seen = EVENTS[:cut] + comment(first) + EVENTS[cut:] + comment(last)
    return {**case("a stream with a checkpoint", EVENTS, last, stream=True), "response": seen}


def signed(header: str, payload: str, key: Ed25519PrivateKey = KEY) -> str:
    text = f"{b64url_encode(header.encode())}.{payload}"
    return f"{text}.{b64url_encode(key.sign(text.encode()))}"


def refused() -> list[dict[str, Any]]:
    """Each differs from something that is accepted in one way; `check` is the one that must fail."""
    plain, stream, long, *_ = accepted()
    token = plain["receipt"]
    _, payload, signature = token.split(".")
    other = Ed25519PrivateKey.from_private_bytes(fixed("another enclave"))
    lying = receipt_for(PROMPT, ANSWER)
    head = '{"alg":"EdDSA","typ":"%s"%s}'
    right, wrong = "attested-receipt+jwt", "JWT"
    found: list[tuple[str, Check, dict[str, Any]]] = [
        ("another key", Check.RECEIPT_SIGNATURE, {"receipt": lying.sign(other)}),
        ("another claim under the signature", Check.RECEIPT_SIGNATURE, {"receipt": _spliced(lying, token)}),
        ("no signature", Check.RECEIPT_SIGNATURE, {"receipt": f"{token[: -len(signature)]}"}),
        ("another type", Check.RECEIPT_FORMAT, {"receipt": signed(head % (wrong, ""), payload)}),
        (
            "a header too many",
            Check.RECEIPT_FORMAT,
            {"receipt": signed(head % (right, ',"kid":"1"'), payload)},
        ),
        ("padding", Check.RECEIPT_FORMAT, {"receipt": f"{token}=="}),
        ("two parts", Check.RECEIPT_FORMAT, {"receipt": token.rpartition(".")[0]}),
        (
            "another statement",
            Check.RECEIPT_STATEMENT,
            {"receipt": replace(lying, statement=fixed("x")).sign(KEY)},
        ),
        (
            "another model",
            Check.RECEIPT_MODEL,
            {"receipt": replace(lying, model=ServedModel(name="m", digest=fixed("x"))).sign(KEY)},
        ),
        ("another question", Check.RECEIPT_REQUEST, {"request": PROMPT.replace("!", "?")}),
        ("another route", Check.RECEIPT_REQUEST, {"path": "/v1/completions"}),
        ("another method", Check.RECEIPT_REQUEST, {"method": "PUT"}),
        ("an old nonce", Check.RECEIPT_REQUEST, {"nonce": fixed("old nonce").hex()}),
        ("another answer", Check.RECEIPT_RESPONSE, {"response": ANSWER.replace("hé", "he")}),
        ("another status", Check.RECEIPT_STATUS, {"status": 201}),
    ]
    events = stream["response"]
    cut = events.index("data: [DONE]")
    mark, end = long["response"].index(": attested"), long["response"].index("data: [DONE]")
    dropped = long["response"][:mark] + long["response"][end:]
    streams: list[tuple[str, Check, str]] = [
        ("a checkpoint was dropped", Check.STREAM_CHECKPOINT, dropped),
        ("a checkpoint is numbered wrongly", Check.STREAM_CHECKPOINT, checkpointed((2, 2))["response"]),
        ("a checkpoint before the event it covers", Check.RECEIPT_RESPONSE, _moved(long["response"])),
        ("a stream that ends with a checkpoint", Check.STREAM_TRUNCATED, long["response"][:end]),
        ("a stream without its end", Check.STREAM_TRUNCATED, EVENTS),
        ("a stream without an event", Check.RECEIPT_RESPONSE, events[cut:]),
        ("a stream that goes on after its receipt", Check.RECEIPT_RESPONSE, events + "data: more\n\n"),
    ]
    return [
        *({**plain, "name": name, "check": str(check), **changes} for name, check, changes in found),
        *({**stream, "name": name, "check": str(check), "response": seen} for name, check, seen in streams),
    ]


def _spliced(receipt: Receipt, token: str) -> str:
    """Other claims before the signature of `token`."""
    claims = replace(receipt, counter=2).sign(KEY).rpartition(".")[0]
    return f"{claims}.{token.rpartition('.')[2]}"


def _moved(body: str) -> str:
    """The stream's first comment at its very beginning."""
    mark, end = body.index(": attested"), body.index("data: [DONE]")
    return body[mark:end] + body[:mark] + body[end:]


def receipts() -> dict[str, Any]:
    return {
        "about": "docs/protocol.md, section 4; digests, keys and nonces in hex, bodies as UTF-8; made by tools/receipt_vectors.py",
        "private": fixed("receipt").hex(),
        "key": KEY.public_key().public_bytes_raw().hex(),
        "statement": sha256(statement()).hexdigest(),
        "model": fixed("model").hex(),
        "accepted": accepted(),
        "refused": refused(),
        "tokens": [
            {"name": "one choice", **tokens(IDS)},
            {"name": "two choices, one of them empty", **tokens(IDS, (IDS[0], []))},
        ],
    }


def texts() -> dict[str, str]:
    """Each file's name and text."""
    made = {"binding.json": binding(), "receipt.json": receipts()}
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in made.items()}


if __name__ == "__main__":
    for file, text in texts().items():
        (FOLDER / file).write_text(text)
