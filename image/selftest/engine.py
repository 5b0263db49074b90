"""An engine outside of the VM: it answers as vLLM does, and says the prompt back. And a listener that nobody should reach."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "selftest"
VERSION = "0.0.0+selftest"
_MOST = 1 << 20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "vllm"}
        answers: dict[str, dict[str, Any]] = {
            "/health": {},
            "/version": {"version": VERSION},
            "/v1/models": {"object": "list", "data": [model]},
        }
        answer = answers.get(self.path)
        self._say(404 if answer is None else 200, answer or {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(min(int(self.headers.get("Content-Length", 0)), _MOST)))
        text = f"You said: {asked['messages'][-1]['content']}"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": MODEL}
        self._say(200, {**head, "choices": [choice], "usage": usage})

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing on the console: a machine that is stopped resets its connections."""


@contextmanager
def engine() -> Iterator[int]:
    """The port of this machine's loopback that it listens on."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Unreached:
    """A port that counts who connects to it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]

    def connections(self) -> int:
        """How many connected and were not counted yet."""
        count = 0
        while True:
            try:
                self._listener.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@contextmanager
def unreached() -> Iterator[Unreached]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        listener.setblocking(False)
        yield Unreached(listener)
