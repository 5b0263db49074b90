"""A server-sent event stream, cut where events end. Bytes are never changed, only held back until an event is whole.

The engine writes `data: …` lines, sometimes after an `event: …` line, and ends each event with a blank line. How the last
event of a whole answer begins is in the table of routes.
"""

from __future__ import annotations

from attestation.receipt import COMMENT, Usage
from enclave_server.engine.answer import TooLongError, UpstreamError
from enclave_server.peek import usage_of
from enclave_server.routes import DONE

MAX_EVENT_BYTES = 16 * 1024 * 1024
_END = b"\n\n"
_ONLY_USAGE = b'"choices":[],"usage":{'  # cannot stand inside a JSON string, whose quotes are escaped
_ERRORS = (b'data: {"error"', b'data: {"object":"error"', b"event: error\n", b"event: response.failed\n")
_LATER_COMMENT = b"\n" + COMMENT
_FIRST = (*_ERRORS, COMMENT)  # what `_look` looks for begins an event


class Events:
    """Takes reads of the socket, gives whole events, and knows how the stream ended."""

    def __init__(self, *, ending: bytes = DONE, hide_usage: bool = False) -> None:
        self._ending = ending
        self._hide_usage = (
            hide_usage  # leave out the event that only counts tokens: the client did not ask for it
        )
        self._tail = b""  # the start of an event that is still to come
        self._last = self._before = b""  # what was given last; usage stands just before [DONE]
        self.failed = False  # the engine reported an error inside its 200

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now: everything up to the last blank line; may be empty."""
        if self._tail:
            data = self._tail + data
        if data.find(b"\n") == len(data) - 2 and data.endswith(_END):  # one event of one line, as mostly
            self._tail = b""
            self._before, self._last = self._last, data
            if data.startswith(_FIRST):
                self._look(data)
            return self._without_usage(data) if self._hide_usage else data
        cut = data.rfind(_END) + len(_END)
        if cut < len(_END):
            cut = 0
        whole, self._tail = data[:cut], data[cut:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise TooLongError("an event without an end")
        if whole:
            self._before, self._last = self._last, whole
            self._look(whole)
        return self._without_usage(whole) if self._hide_usage else whole

    @property
    def complete(self) -> bool:
        """The stream ended as a whole answer does: no error, no torn event, the right one at the end."""
        before = self._last.rfind(_END, 0, -len(_END))
        last = self._last if before < 0 else self._last[before + len(_END) :]
        return not self.failed and not self._tail and last.startswith(self._ending)

    def usage(self) -> Usage | None:
        """Token counts of the last event that has any."""
        recent = self._before + self._last
        start = recent.rfind(b'"usage":{')
        if start < 0:
            return None
        before = recent.rfind(_END, 0, start)
        event = recent[before + len(_END) if before >= 0 else 0 : recent.find(_END, start)]
        return usage_of(event[event.find(b"data: ") + len(b"data: ") :])

    def _without_usage(self, whole: bytes) -> bytes:
        at = whole.rfind(_ONLY_USAGE)
        if at < 0:
            return whole
        before = whole.rfind(_END, 0, at)
        start = before + len(_END) if before >= 0 else 0
        return whole[:start] + whole[whole.find(_END, at) + len(_END) :]

    def _look(self, whole: bytes) -> None:
        if b"error" in whole or b"failed" in whole:  # as each of the marks has, and hardly any other event
            self.failed |= any(whole.startswith(mark) or _END + mark in whole for mark in _ERRORS)
        if _LATER_COMMENT in whole or whole.startswith(COMMENT):
            raise UpstreamError("the engine wrote a comment that only the gateway may write")
