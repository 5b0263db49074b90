"""Write docs/routes.md from the table in `enclave_server/routes.py`: `python -m tools.route_table > docs/routes.md`."""

from __future__ import annotations

import json
import sys

from enclave_server.content import MEMBERS
from enclave_server.routes import HARMLESS, MODEL, REFUSED, ROUTES

_TOP = """# Routes

Made from `enclave_server/routes.py` by `python -m tools.route_table`; a test holds the two together. Everything that is not here is 404 in
OpenAI's error shape, with a receipt: vLLM's routes for administration and development, for adapters, other engines and metrics among it. A route that the
loaded model cannot serve (embeddings of a chat model) is 404 as well.

A field that is not in its route's list is 400 `unknown_field`, or `field_not_allowed` with the reason below; `param` names it.
"""
# vLLM's other routes that answer something of the model, by why they are not carried. The rest is administration.
NOT_CARRIED = {
    "several conversations are several requests, each with a receipt of its own": (
        "/v1/chat/completions/batch",
    ),
    "a WebSocket has no one answer that a receipt could be about": ("/v1/realtime",),
    "nothing is stored between requests; hanging up cancels": (
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
    ),
    "it takes media by their addresses, and the engine has no network": ("/v1/systemone",),
    "another maker's form of `/v1/embeddings` and `/v1/rerank`": ("/v2/embed", "/v2/rerank"),
    "for other engines; `/v1/tokenize` shows a prompt's tokens": (
        "/v1/chat/completions/render",
        "/v1/chat/completions/derender",
        "/v1/completions/render",
        "/v1/completions/derender",
        "/v1/messages/render",
        "/v1/responses/render",
        "/inference/v1/generate",
    ),
}
_DEEPER = """
## Deeper than names

- Content parts are of the types {types}. Media are `data:` URLs, or `input_audio` and base64 sources: the engine has no network. Tensors, files and items by
  reference, and `uuid` (a name in a cache that tenants share) are refused.
- `tools` are functions, which the client runs. `store` may be `false`. `chat_template_kwargs` has plain values, and no `chat_template`.
- `structured_outputs` and `stream_options` have the members {members}.
- `GET /v1/models/{{model}}`, which vLLM does not have, is answered with the bytes of that entry, or `404 model_not_found`.
- A body to `/v1/tokenize` or `/v1/detokenize` has at most 1 MiB (`413 request_too_large`): vLLM has one tokenizer for all, and no other bound there.
- Forms: `file` is the only file; numbers and truth values are written as in JSON; other fields have at most 64 KiB.
"""


def table() -> str:
    """The page."""
    lines = [_TOP, "| route | engine's | carries | streams end with |", "|---|---|---|---|"]
    for path, route in ROUTES.items():
        ending = f"`{route.ending.decode().strip()}`" if route.ending else "–"
        lines.append(
            f"| `{route.method} {path.decode()}` | `{route.engine}` | {route.kind.value} | {ending} |"
        )
        if route.engine == MODEL.engine:
            lines.append(
                f"| `{MODEL.method} {path.decode()}/{{model}}` | its entry in `{MODEL.engine}` | nothing | – |"
            )
    lines += ["\n## vLLM's routes that are not carried\n", "| vLLM's | why |", "|---|---|"]
    lines += [f"| {', '.join(f'`{path}`' for path in paths)} | {why} |" for why, paths in NOT_CARRIED.items()]
    lines.append("\n## Fields\n")
    for path, route in ROUTES.items():
        if route.fields:
            lines.append(f"- `{path.decode()}`: {_list(route.fields)}")
    lines += ["\n## Refused by name\n", "| field | reason | accepted all the same |", "|---|---|---|"]
    for name, reason in sorted(REFUSED.items()):
        values = ", ".join(f"`{json.dumps(value)}`" for value in HARMLESS.get(name, ())) or "–"
        lines.append(f"| `{name}` | {reason} | {values} |")
    deeper = _DEEPER.format(types=_list(MEMBERS["content"]), members=_list(_options()))
    return "\n".join(lines) + "\n" + deeper


def _options() -> frozenset[str]:
    return MEMBERS["structured_outputs"] | MEMBERS["stream_options"]


def _list(words: frozenset[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words))


if __name__ == "__main__":
    sys.stdout.write(table())
