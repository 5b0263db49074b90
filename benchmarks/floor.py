"""The least that a gateway in Python does for a plain answer of this protocol. What `gateway.py` compares with.

It looks an API key up by its digest, peeks at `model` and `stream`, passes the request on, hashes both bodies behind a nonce, and
signs the protocol's receipt with the engine's token counts in it. No ASGI, no limit, no time-out, no strictness, no failure, no
numbers: a floor to measure with, and nothing to use.

    python -m benchmarks.floor PORT ENGINE_SOCKET
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from hashlib import sha256
from itertools import count
from typing import cast

import httptools
import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation._b64 import b64url_encode
from attestation.receipt import Outcome, ServedModel, Usage, sign_receipt

KEY, API_KEY = Ed25519PrivateKey.generate(), "sk-enclave-floor"
KNOWN = {sha256(f"Bearer {API_KEY}".encode()).digest(): "somebody"}
MODEL, STATEMENT, NUMBERS = ServedModel(name="mock", digest=bytes(32)), bytes(32), count(1)


class Asked(msgspec.Struct):
    """What is peeked at in a request."""

    model: str
    stream: bool = False


class Counts(msgspec.Struct):
    """The engine's."""

    prompt_tokens: int
    completion_tokens: int


class Answered(msgspec.Struct):
    """What is peeked at in an answer."""

    usage: Counts


peek_request, peek_answer = msgspec.json.Decoder(Asked).decode, msgspec.json.Decoder(Answered).decode


class Peer(asyncio.Protocol):
    """One side: collects a message's body."""

    parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def __init__(self) -> None:
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, part: bytes) -> None:
        self.body += part


class ToEngine(Peer):
    """A kept connection to the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = httptools.HttpResponseParser(self)
        self.client: FromClient | None = None

    def on_message_complete(self) -> None:
        client, self.client = self.client, None
        idle.append(self)
        if client is not None:
            client.answer(self.body)


class FromClient(Peer):
    """A client's connection."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = httptools.HttpRequestParser(self)
        self.url = self.shown = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.shown = value

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        if self.url == b"/":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        if sha256(self.shown).digest() not in KNOWN or peek_request(self.body).stream:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return
        engine = idle.pop()
        engine.client = self
        head = b"POST %s HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        engine.transport.writelines([head % (self.url, len(self.body)), self.body])

    def answer(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        nonce, counter, counts = os.urandom(32), next(NUMBERS), peek_answer(body).usage
        receipt = sign_receipt(
            KEY,
            id=f"rcpt-floor-{counter}",
            counter=counter,
            time=int(time.time()),
            method="POST",
            path=self.url.decode(),
            asked=(sha256(nonce + self.body).digest(), len(self.body)),
            status=200,
            answered=(sha256(nonce + body).digest(), len(body)),
            outcome=Outcome.COMPLETE,
            model=MODEL,
            usage=Usage(prompt_tokens=counts.prompt_tokens, completion_tokens=counts.completion_tokens),
            sampling={},
            statement=STATEMENT,
            checkpoints=0,
            tokens=None,
            parts=None,
        )
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"attested-receipt: {receipt}\r\nattested-nonce: {b64url_encode(nonce)}\r\n\r\n"
        )
        self.transport.writelines([head.encode(), body])


idle: list[ToEngine] = []


async def main(port: int, engine: str) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(128):
        _, connection = await loop.create_unix_connection(ToEngine, engine)
        idle.append(connection)
    await (await loop.create_server(FromClient, "127.0.0.1", port)).serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
