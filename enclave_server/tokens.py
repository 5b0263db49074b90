"""Token ids for receipts, where a request asks for them with `Attested-Replay: 1`; no other request pays for it.

The ids are read from the engine's answer as it passes, and are in what the client gets: so it can check the digest itself.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from attestation.tokens import ID_LIMIT, REPLAY_HEADER, RunningTokens
from enclave_server.asgi import Fields
from enclave_server.errors import ApiError
from enclave_server.routes import Route

_HEADER = REPLAY_HEADER.lower().encode()
_DATA = b"data: "
_Ids = list[Annotated[int, msgspec.Meta(ge=0, lt=ID_LIMIT)]]


def tokens_for(fields: Fields, route: Route) -> Tokens | None:
    """What reads the answer's ids, if the request asks for a digest over them; a 400 where there can be none."""
    asked = fields.get(_HEADER)
    if asked is None:
        return None
    if asked != [b"1"]:
        raise ApiError(400, "invalid_replay", f"{REPLAY_HEADER} must be 1, once.", param=REPLAY_HEADER)
    if "return_token_ids" not in route.fields:
        raise ApiError(
            400, "replay_unsupported", "This route's answers have no token ids.", param=REPLAY_HEADER
        )
    return Tokens()


class _Choice(msgspec.Struct):
    index: int = 0
    token_ids: _Ids | None = None
    prompt_token_ids: _Ids | None = None  # of a completion; a chat has one prompt for all its choices


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: _Ids | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Tokens:
    """Reads a plain answer, or the events of a stream as they pass."""

    def __init__(self) -> None:
        self._running = RunningTokens()
        self._readable = True

    def plain(self, body: bytes) -> None:
        """Take the whole body of an answer."""
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._readable = False
            return
        if answer.prompt_token_ids is not None:
            self._running.prompt(answer.prompt_token_ids)
        for choice in answer.choices:
            if choice.prompt_token_ids is not None:
                self._running.prompt(choice.prompt_token_ids, choice.index)
            if choice.token_ids is not None:
                self._running.output(choice.index, choice.token_ids)

    def events(self, whole: bytes) -> None:
        """Take whole events."""
        for event in whole.split(b"\n\n"):
            if event.startswith(_DATA) and not event.startswith(b"data: [DONE]"):
                self.plain(event[len(_DATA) :])

    def digest(self, nonce: bytes) -> bytes | None:
        """None where the engine did not give the ids of every choice, as with reasoning that is hidden."""
        return self._running.digest(nonce) if self._readable else None
