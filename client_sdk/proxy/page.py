"""The proxy's own two pages: what is trusted, until when, and what went wrong. Never what was asked or answered.

`/status.json` is for programs; `/` says the same in words, in one file without scripts that loads nothing.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from hashlib import sha256
from html import escape
from typing import Any

from attestation.errors import AttestationError
from client_sdk.outcome import lines_of, proven
from client_sdk.present import plain
from client_sdk.proxy.http import Answer, date_header
from client_sdk.proxy.passing import STREAMS, Proxy
from client_sdk.proxy.upstream import Upstream
from client_sdk.sealing import Channel
from client_sdk.session import Refused, Verified
from client_sdk.transport import Trust

STYLE = """\
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:46rem;margin:2rem auto;padding:0 1rem}p,td{overflow-wrap:anywhere}p.refused{font-weight:400}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}td{padding:.15rem .6rem .15rem 0;vertical-align:top}
.passed{color:#1a7f37}.refused{color:#cf222e;font-weight:600}.undecided{color:#9a6700}.not{opacity:.6}
.warn{border:2px solid #9a6700;padding:.3rem .7rem;border-radius:.3rem}code{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){.passed{color:#3fb950}.refused{color:#ff7b72}.undecided,.warn{color:#d29922}}
"""
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_CLASSES = {"passed": "passed", "REFUSED": "refused", "could not decide": "undecided", "not reached": "not"}
REFRESH_SECONDS = 5


class Pages:
    """What the proxy says of itself."""

    def __init__(
        self,
        proxy: Proxy,
        trust: Trust,
        *,
        channel: Channel,
        policy: Callable[[], str],
        started: datetime,
    ) -> None:
        self._proxy, self._trust, self._channel = proxy, trust, channel
        self._policy, self._started = policy, started

    def answer(self, target: str, now: datetime) -> Answer | None:
        """The page at `target`; None where there is none."""
        path = target.partition("?")[0]
        if path == "/status.json":
            kind, text = b"application/json", json.dumps(self.status(now))
        elif path == "/":
            kind, text = b"text/html; charset=utf-8", self.html(now)
        else:
            return None
        headers = [(b"content-type", kind), *_HEADERS, date_header()]
        return Answer(status=200, headers=headers, body=text.encode())

    def status(self, now: datetime) -> dict[str, Any]:
        """The one object of `/status.json`."""
        return {
            "v": 1,
            "time": plain(now),
            "started": plain(self._started),
            "policy": self._policy(),
            "channel": str(self._channel),
            "verify": STREAMS[self._proxy.verify],
            "enclaves": [self._enclave(upstream, now) for upstream in self._proxy.upstreams],
            "counts": asdict(self._proxy.counts),
            "failures": [
                {"time": plain(f.at), "enclave": f.enclave, "code": f.code, "message": f.words}
                for f in reversed(self._proxy.failures)
            ],
        }

    def _enclave(self, upstream: Upstream, now: datetime) -> dict[str, Any]:
        found: dict[str, Any] = {"url": upstream.origin, "state": "unverified", "links": [], "facts": []}
        failure, cause = upstream.failure, None
        if failure is not None:
            found |= {"failure": failure.to_dict(), "failed_at": plain(upstream.failed_at)}
            found["state"] = "refused" if failure.refused else "unreachable"
            cause = failure.cause
        match self._trust.state(upstream.origin):
            case Verified(verdict, until, failure=late):
                lines = lines_of(None, self._channel, gpus=bool(verdict.gpus))
                found |= {
                    "state": "verified" if verdict.verified_at <= now < until else "to be verified again",
                    "verified_at": plain(verdict.verified_at),
                    "until": plain(until),
                    "not_renewed": None if late is None else str(late),
                    "simulated": verdict.simulated,
                    "statement": verdict.statement_digest.hex(),
                    "facts": proven(verdict),
                }
            case Refused(error, _, _):
                lines = lines_of(error, self._channel, gpus=False)
            case _:  # never asked, or not what it was any more
                known = cause if isinstance(cause, AttestationError) else None
                lines = [] if known is None else lines_of(known, self._channel, gpus=False)
        found["links"] = [{"link": line.title, "state": str(line.state)} for line in lines]
        return found

    def html(self, now: datetime) -> str:
        """The same for people."""
        status = self.status(now)
        counts = " · ".join(f"{name.replace('_', ' ')} {n}" for name, n in status["counts"].items())
        failures = "".join(
            f"<tr><td>{escape(f['time'])}</td><td><code>{escape(f['code'])}</code></td><td>{escape(f['message'])}</td></tr>"
            for f in status["failures"]
        )
        return (
            "<!doctype html><html lang=en><meta charset=utf-8>"
            f'<meta http-equiv=refresh content="{REFRESH_SECONDS}"><title>attested proxy</title><style>{STYLE}</style>'
            "<h1>attested proxy</h1><p>Every answer that leaves here was verified, or is an error that says why not. "
            f"Policy <code>{escape(status['policy'])}</code>, channel {status['channel']}, streams {status['verify']}.</p>"
            + "".join(_section(enclave) for enclave in status["enclaves"])
            + f"<h2>Requests since {escape(status['started'])}</h2><p>{counts}</p>"
            + (f"<h2>Last failures</h2><table>{failures}</table>" if failures else "")
            + f"<p class=not>As of {escape(status['time'])}. Nothing of a request or an answer is shown here.</p>"
        )


def _section(enclave: dict[str, Any]) -> str:
    links = "".join(
        f"<tr><td>{escape(line['link'])}</td><td class={_CLASSES[line['state']]}>{escape(line['state'])}</td></tr>"
        for line in enclave["links"]
    )
    until = f", until {enclave['until']}" if "until" in enclave else ""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in enclave["facts"])
    parts = [f"<h2>{escape(enclave['url'])}</h2><p><strong>{enclave['state']}</strong>{until}</p>"]
    if enclave.get("simulated"):
        parts.append("<p class=warn>SIMULATED: this proves nothing about hardware</p>")
    if enclave.get("not_renewed"):
        parts.append(f"<p class=undecided>not renewed yet: {escape(enclave['not_renewed'])}</p>")
    if "failure" in enclave:
        said = f"{escape(enclave['failed_at'])}: {escape(enclave['failure']['message'])}"
        parts.append(f"<p class=refused>{said}</p>")
    parts.append(f"<table>{links}</table><ul>{facts}</ul>")
    return "".join(parts)
