"""A chat, as it is asked for."""

from __future__ import annotations

from typing import Any

from tests.servers import MODEL

CHAT = "/v1/chat/completions"


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
