"""Logs cannot carry content: fields, values and other libraries' messages are reduced to what is known beforehand."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from enclave_server import log as logs
from enclave_server.engine.log import EngineLog
from enclave_server.log import MAX_VALUE, log


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Logging as the command sets it up, and as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    with warnings.catch_warnings():
        logs.configure()
        yield
        logging.captureWarnings(False)
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def line_of(capsys: pytest.CaptureFixture[str], name: str, value: str) -> dict[str, Any]:
    """The one line with this; what earlier tests left may be noticed, and logged, just now."""
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    [found] = [line for line in lines if line.get(name) == value]
    return dict(found)


def test_fields(configured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A field that is not on the list, and a value that is not plain and short, is dropped."""
    log.info("an event", status=200, prompt="secret", route=["secret"], reason="r" * 1000)
    line = line_of(capsys, "event", "an event")
    assert set(line) == {"event", "level", "time", "status", "reason"}
    assert len(line["reason"]) == MAX_VALUE


def test_other_libraries(configured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another library's message only its place and the type of its exception are written."""
    try:
        raise ValueError("secret")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed on %s", "secret")
    line = line_of(capsys, "logger", "uvicorn.error")
    assert (line["error"], line["level"]) == ("ValueError", "error")
    assert "secret" not in str(line)


STRAY = """
import asyncio, gc, sys, threading, warnings
from enclave_server import log

class Dropped:
    def __del__(self):
        fail()

async def work():
    asyncio.create_task(later())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(fail)
    later()
    await asyncio.sleep(0)
    gc.collect()

async def later():
    fail()

def fail():
    raise ValueError(sys.argv[1])

log.configure()
warnings.warn(sys.argv[1])
thread = threading.Thread(target=fail, name=sys.argv[1])
thread.start()
thread.join()
Dropped()
asyncio.run(work(), debug=True)
fail()
"""


def test_what_nobody_catches() -> None:
    """Warnings, and exceptions in threads, finalizers, tasks, callbacks and at last, lose their words as all others do."""
    command = [sys.executable, "-c", STRAY, "secret"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["error"] for line in lines].count("ValueError") == 5
    assert "py.warnings" in {line.get("logger") for line in lines}
    assert "secret" not in done.stderr + done.stdout


def test_engine_start_is_told_on_failure() -> None:
    """Before the engine ever served, its last lines are passed on whole when it failed; afterwards never."""
    output = EngineLog(frozenset())
    output.feed(b"one\nERROR bad fl")
    output.feed(b"ag\n")
    with capture_logs() as captured:
        output.explain_start()
    assert [entry["line"] for entry in captured] == ["one", "ERROR bad flag"]
    output.serving = True
    with capture_logs() as captured:
        output.explain_start()
    assert captured == []


def test_engine_message() -> None:
    """From a serving engine: level, one of its own files, a known exception; repeats are left out."""
    output = EngineLog(frozenset({"core.py"}))
    output.serving = True
    line = b"(EngineCore pid=9) ERROR 11-21 05:05:12 [v1/core.py:12] EngineDeadError: my secret\n"
    with capture_logs() as captured:
        output.feed(line * 3)
        output.feed(b"INFO 11-21 05:05:12 [core.py:12] my secret\n")
        output.feed(b"WARNING 11-21 05:05:12 [mysecret.py:12] MySecretError\n")
    assert [{k: entry[k] for k in ("component", "source", "error")} for entry in captured] == [
        {"component": "ERROR", "source": "core.py:12", "error": "EngineDeadError"},
        {"component": "WARNING", "source": None, "error": None},
    ]


@given(st.text(min_size=6), st.binary())
def test_engine_words_never_pass(secret: str, noise: bytes) -> None:
    """Whatever a serving engine writes, none of its words come through."""
    output = EngineLog(frozenset({"core.py"}))
    output.serving = True
    with capture_logs() as captured:
        words = secret.encode("utf-8", "replace")
        output.feed(
            b"ERROR 11-21 05:05:12 [" + words + b".py:1] " + words + b"Error: " + words + noise + b"\n"
        )
    values = {entry.get("source") for entry in captured} | {entry.get("component") for entry in captured}
    assert values <= {None, "ERROR", "WARNING", "CRITICAL"}
