"""The least that a gateway in Python does for a plain answer: parse, pass on, hash both bodies, sign. What `gateway.py` compares with.

No ASGI, no access control, no limit, no strictness, no failure: a floor to measure with, and nothing to use.

    python -m benchmarks.floor PORT ENGINE_SOCKET
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import cast

import httptools
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.generate()


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
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        if self.url == b"/":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        engine = idle.pop()
        engine.client = self
        head = b"POST %s HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        engine.transport.writelines([head % (self.url, len(self.body)), self.body])

    def answer(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        claims = {
            "time": int(time.time()),
            "request": {"digest": sha256(self.body).hexdigest(), "length": len(self.body)},
            "response": {"digest": sha256(body).hexdigest(), "length": len(body)},
        }
        signed = urlsafe_b64encode(json.dumps(claims).encode())
        receipt = b"%s.%s" % (signed, urlsafe_b64encode(KEY.sign(signed)))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nattested-receipt: %s\r\n\r\n"
        self.transport.writelines([head % (len(body), receipt), body])


idle: list[ToEngine] = []


async def main(port: int, engine: str) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(128):
        _, connection = await loop.create_unix_connection(ToEngine, engine)
        idle.append(connection)
    await (await loop.create_server(FromClient, "127.0.0.1", port)).serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
