"""Logs that cannot carry a prompt, an answer or a header's value: one JSON line an event, fields from an allow-list.

Event names are literals in this package. Other libraries' messages are reduced to their logger, level and the type of
their exception, because their texts may quote what they failed on.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from pathlib import PurePath
from typing import Any

import structlog

from attestation.checks import Check
from attestation.errors import AttestationError

FIELDS = frozenset(
    {
        "address",
        "attempt",
        "component",
        "count",
        "delay_seconds",
        "error",
        "exit_code",
        "files",
        "isolation",
        "level",
        "line",
        "logger",
        "model",
        "model_digest",
        "pid",
        "reason",
        "route",
        "seconds",
        "source",
        "statement",
        "status",
        "tee",
        "version",
    }
)
MAX_VALUE = 400
_OF_MACHINES = {
    Check.TEE_COLLECT,
    Check.GPU_COLLECT,
    Check.COLLATERAL_FETCH,
}  # these say what an operator has to do

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def only_known_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every field that is not on the list, and every value that is not short and plain."""
    kept: dict[str, Any] = {"event": event["event"]}
    for name, value in event.items():
        if name not in FIELDS:
            continue
        if isinstance(value, str):
            kept[name] = value[:MAX_VALUE]
        elif value is None or isinstance(value, bool | int | float):
            kept[name] = value
    return kept


def failure(error: BaseException) -> dict[str, str | None]:
    """Fields that say what failed and where, without its words."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
    named = (
        {"reason": str(error)} if isinstance(error, AttestationError) and error.check in _OF_MACHINES else {}
    )
    return {"error": type(error).__name__, "source": place, **named}


class Reduced(logging.Handler):
    """Other libraries' records, without their words."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        log.log(
            record.levelno,
            "library message",
            logger=record.name,
            source=f"{record.module}:{record.lineno}",
            error=error,
        )


def _uncaught(_: object, error: BaseException, __: object = None) -> None:
    log.error("unexpected failure", **failure(error))


def _in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(None, args.exc_value)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(None, args.exc_value)


def configure() -> None:
    """Send everything this process logs through the allow-list to standard error, and what nobody catches, too."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            only_known_fields,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [Reduced()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook, sys.unraisablehook, threading.excepthook = _uncaught, _unraisable, _in_thread
