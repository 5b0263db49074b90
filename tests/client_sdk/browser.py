"""Headless Chromium, driven over its debugging pipe: open a page, wait for what its script says, take its DOM."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import IO, Any

import pytest

PROGRAM = which("chromium") or which("chromium-headless-shell") or which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]


class Browser:
    """One tab."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        (target,) = [t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self._ask("Target.attachToTarget", attach)["sessionId"]

    def dom(self, page: Path, settled: str, seconds: float = 120) -> str:
        """The DOM of `page`, once the JavaScript expression `settled` is true or the time is up."""
        self._ask("Page.navigate", {"url": page.as_uri()}, self._session)
        end = time.monotonic() + seconds
        while not self._value(settled) and time.monotonic() < end:
            time.sleep(0.05)
        return str(self._value("document.documentElement.outerHTML"))

    def _value(self, expression: str) -> Any:
        found = self._ask(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True}, self._session
        )
        return found["result"].get("value")

    def _ask(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> Any:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params or {}}
        command |= {"sessionId": session} if session else {}
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while True:  # events come in between
            answer = json.loads(self._read())
            if answer.get("id") == number:
                return answer["result"]

    def _read(self) -> bytes:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return bytes(message)


@contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is none."""
    if PROGRAM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    (told, tell), (hear, say) = os.pipe(), os.pipe()

    shell = ["sh", "-c", f'exec "$@" 3</dev/fd/{told} 4>/dev/fd/{say}', "sh"]  # commands on 3, answers on 4
    command = [PROGRAM, *FLAGS, f"--user-data-dir={folder}/profile", "--remote-debugging-pipe", "about:blank"]
    process = subprocess.Popen([*shell, *command], stderr=subprocess.DEVNULL, pass_fds=(told, say))
    os.close(told)
    os.close(say)
    try:
        with os.fdopen(tell, "wb") as commands, os.fdopen(hear, "rb") as answers:
            yield Browser(commands, answers)
    finally:  # it ends with its pipe
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
