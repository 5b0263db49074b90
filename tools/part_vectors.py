"""Write docs/vectors/parts.json: the parts of chats, what receipts say of them, and disclosures that hold or do not.

python -m tools.part_vectors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attestation.parts import messages_of, part_digest, part_salt, parts_digest, texts_of
from tools.receipt_vectors import FOLDER, fixed

FILE = FOLDER / "parts.json"
NONCE = fixed("nonce of a chat with parts")
PROMPT = '{"model":"m", "messages" : [{"role":"system","content":"be\\u0020kind"} ,\n {"content":"Grüße!","role":"user"}]}'
PLAIN = (
    '{"choices":[{"index":1,"message":{"content":null}},{"index":0,"message":{"content":"hé, \\"you\\""}}]}'
)
STREAM = (
    'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    'data: {"choices":[{"index":0,"delta":{"content":"hé, "}}]}\n\n'
    'data: {"choices":[{"index":1,"delta":{}},{"index":0,"delta":{"content":"\\"you\\""}}]}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    "data: [DONE]\n\n"
)


def case(name: str, answer: str) -> dict[str, Any]:
    """A chat, each part of it with salt and digest, and the claim."""
    found = {"message": messages_of(PROMPT.encode()), "choice": texts_of(answer.encode())}
    parts = {
        f"{kind}s": [
            {
                "value": value.decode(),
                "salt": part_salt(NONCE, kind, index).hex(),
                "digest": part_digest(part_salt(NONCE, kind, index), value).hex(),
            }
            for index, value in enumerate(values)
        ]
        for kind, values in found.items()
    }
    digests = ([bytes.fromhex(part["digest"]) for part in parts[kind]] for kind in ("messages", "choices"))
    claim = parts_digest(*digests).hex()
    return {
        "name": name,
        "nonce": NONCE.hex(),
        "request": PROMPT,
        "response": answer,
        **parts,
        "parts": claim,
    }


def disclosures() -> list[dict[str, Any]]:
    """One message shown; the same with a change that makes it false."""
    chat = case("", PLAIN)
    hidden, shown = chat["messages"]
    good = {
        "messages": [{"digest": hidden["digest"]}, {"salt": shown["salt"], "value": shown["value"]}],
        "choices": [{"digest": choice["digest"]} for choice in chat["choices"]],
    }
    first, second = good["messages"]
    bad = {
        "another text": {"messages": [first, {**second, "value": shown["value"] + " "}]},
        "another salt": {"messages": [first, {**second, "salt": hidden["salt"]}]},
        "another order": {"messages": [second, first]},
        "a part dropped": {"messages": [second]},
        "a part moved to the choices": {"messages": [first], "choices": [second, *good["choices"]]},
        "a choice twice": {"choices": good["choices"] * 2},
    }
    made = [{"name": "one message shown", "holds": True, **good}]
    made += [{"name": name, "holds": False, **good, **change} for name, change in bad.items()]
    return [{**one, "parts": chat["parts"]} for one in made]


def text() -> str:
    """The file's text."""
    value = {
        "about": "docs/protocol.md, sections 4 and 10; bytes in hex, values as UTF-8; made by tools/part_vectors.py",
        "chats": [case("plain", PLAIN), case("streamed", STREAM)],
        "disclosures": disclosures(),
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(FILE).write_text(text())
