"""One audited exchange as one HTML page: the chain of trust as a picture, and its signatures checked again in the browser.

The page loads nothing and may run only its own script. What a browser cannot check (the vendors' certificates, their
revocation, the policy) it tells as what it is: found by whoever made the page.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files

from attestation.audit import Audited
from attestation.bundle import SavedExchange
from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError
from attestation.evidence import TdxEvidence
from attestation.receipt import COMMENT, Outcome
from attestation.tdx import TdxClaims
from attestation.verdict import Verdict
from attestation.vtpm import AzureEvidence
from client_sdk.chains import DOCUMENT
from client_sdk.present import Line, walk

_STEP, _HEIGHT, _WIDTH = 96, 66, 640


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the page is about. `exchange` is one of the audited bundle; with `content`, its bytes are shown."""

    verdict: Verdict
    audited: Audited
    exchange: SavedExchange
    content: bool
    made: datetime

    def to_html(self) -> str:
        receipt = self.audited.receipt
        title = f"Attested answer {receipt.id}"
        return (
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            f'<meta http-equiv=content-security-policy content="{_policy()}">'
            f"<title>{escape(title)}</title><style>{_read('report.css')}</style></head><body>"
            f"<h1>{escape(title)}</h1><p class=lead>{_when(receipt.time)}, by the enclave's clock · outcome {receipt.outcome}</p>"
            f"{self._warning()}<p id=summary class=wait>Not checked yet: this page's own script has not run.</p>"
            f"{_picture(self._boxes())}"
            "<h2>Checked again in this browser</h2><table id=checks></table>"
            f"<h2>Found by <code>attested report</code> on {self.made:%Y-%m-%d}, as of {self.verdict.verified_at:%Y-%m-%d}</h2>"
            "<p class=lead>A browser cannot check these. Verify the bundle itself with <code>attested audit</code>.</p>"
            f"{_table((line.title, str(line.state)) for line in self._lines())}"
            f"<h2>What was proven</h2>{_table(self._facts())}{self._bytes()}"
            f"<script type=application/json id=data>{self._data()}</script>"
            f"<script type=module>{_script()}</script></body></html>\n"
        )

    def _warning(self) -> str:
        if not self.verdict.simulated:
            return ""
        return "<p class=warn>SIMULATED: a root here is no hardware vendor's. This proves nothing about hardware.</p>"

    def _lines(self) -> list[Line]:
        without = (
            () if self.verdict.gpus else [link.title for link in DOCUMENT if link.covers(Check.GPU_CHAIN)]
        )
        return walk(DOCUMENT, None, skipped=without)

    def _boxes(self) -> Iterator[tuple[str, str, str]]:
        verdict, receipt = self.verdict, self.audited.receipt
        yield "root", "Hardware vendors", " · ".join(root.name for root in verdict.roots)
        yield "machine", _machine(verdict), f"it signed the digest {verdict.cpu.report_data.hex()[:24]}…"
        model = verdict.statement.model
        yield "statement", f"Statement: {', '.join(model.names)}", f"model digest {model.digest.hex()[:24]}…"
        yield (
            "receipt",
            f"Receipt {receipt.id}",
            f"signed by {verdict.statement.keys.receipt_ed25519.hex()[:24]}…",
        )
        asked, told = receipt.request, receipt.response
        sizes = f"{asked.length:,} bytes asked, {told.length:,} bytes answered, status {told.status}"
        yield "exchange", f"{asked.method} {asked.path[:60]}", sizes

    def _facts(self) -> Iterator[tuple[str, str]]:
        statement, receipt = self.verdict.statement, self.audited.receipt
        yield "machine", _machine(self.verdict)
        yield from _measurements(self.verdict)
        yield "GPUs", ", ".join(f"{g.model}, driver {g.driver}" for g in self.verdict.gpus) or "none"
        yield "model digest", statement.model.digest.hex()
        yield "engine", " ".join((statement.engine.name, statement.engine.version, *statement.engine.flags))
        yield "configuration digest", statement.config.hex()
        yield "statement digest", self.verdict.statement_digest.hex()
        if receipt.usage is not None:
            used = receipt.usage
            yield (
                "tokens",
                f"{used.prompt_tokens} in, {used.completion_tokens} out, as the engine counted them",
            )
        yield "sampling", json.dumps(dict(receipt.sampling)) if receipt.sampling else "the engine's defaults"
        yield "evidence valid until", f"{self.verdict.valid_until:%Y-%m-%dT%H:%M:%SZ}"

    def _bytes(self) -> str:
        if (texts := self._texts()) is None:
            return "<h2>Request and answer</h2><p>Left out; the receipt has their digests.</p>"
        asked, told = texts
        return f"<h2>Request</h2><pre>{escape(asked)}</pre><h2>Answer</h2><pre>{escape(told)}</pre>"

    def _texts(self) -> tuple[str, str] | None:
        """Request and answer, where they are to be shown."""
        if not self.content:
            return None
        asked, told = self.exchange.request, self.exchange.response
        if asked is None or told is None:
            raise MalformedError(
                Check.BUNDLE_FORMAT,
                "expected the bytes of request and answer, found their digests only",
                advice="Make the report without --content",
            )
        told = told.removesuffix(COMMENT + self.exchange.receipt.encode() + b"\n\n")
        if self.audited.receipt.outcome is Outcome.ERROR:  # a refusal covers what had been read
            asked = asked[: self.audited.receipt.request.length]
        try:
            return asked.decode(), told.decode()
        except UnicodeDecodeError:
            raise MalformedError(
                Check.BUNDLE_FORMAT,
                "expected text, found other bytes in request or answer",
                advice="Make the report without --content",
            ) from None

    def _data(self) -> str:
        """What the script needs. The exchange's nonce would help to guess bytes that are left out: it goes with them."""
        verdict, receipt, texts = self.verdict, self.audited.receipt, self._texts()
        cpu = verdict.evidence.cpu
        if isinstance(cpu, AzureEvidence):
            raise UnavailableError(
                Check.BUNDLE_FORMAT,
                "a page cannot check the quote of a vTPM",
                advice="Use `attested audit` for answers from Azure",
            )
        raw = cpu.quote if isinstance(cpu, TdxEvidence) else cpu.report
        data = {
            "receipt": self.exchange.receipt,
            "statement": verdict.evidence.statement.decode(),
            "nonce": verdict.nonce.hex(),
            "cpu": b64encode(raw).decode(),
            "reportDataAt": raw.index(verdict.cpu.report_data),
            "gpu": b64encode(verdict.evidence.gpu).decode(),
            "gpuToken": b64encode(verdict.evidence.gpu_token).decode(),
            "exchange": texts
            and {
                "method": receipt.request.method,
                "path": receipt.request.path,
                "nonce": self.exchange.nonce.hex(),
                "request": texts[0],
                "response": texts[1],
                "status": receipt.response.status,
            },
        }
        return json.dumps(data).replace("<", "\\u003c")


def _picture(boxes: Iterator[tuple[str, str, str]]) -> str:
    """Boxes from the root down, each vouching for the next."""
    parts = []
    for number, (name, title, text) in enumerate(boxes):
        top = number * _STEP
        if number:
            middle = _WIDTH // 2
            parts.append(f'<path d="M{middle} {top - _STEP + _HEIGHT} V{top - 6}"/>')
            parts.append(f'<path class=head d="M{middle - 5} {top - 8} h10 l-5 8 z"/>')
        parts.append(
            f"<rect id={name} x=2 y={top + 2} width={_WIDTH - 4} height={_HEIGHT - 4} rx=8 />"
            f"<text class=title x=18 y={top + 28}>{escape(title)}</text>"
            f"<text class=small x=18 y={top + 50}>{escape(text)}</text>"
        )
    height = number * _STEP + _HEIGHT
    label = "The chain of trust, from the hardware vendors to request and answer"
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role=img aria-label="{label}">{"".join(parts)}</svg>'


def _table(rows: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _machine(verdict: Verdict) -> str:
    cpu = verdict.cpu
    kind = (
        f"Intel TDX, TCB {cpu.tcb_status}"
        if isinstance(cpu, TdxClaims)
        else f"AMD SEV-SNP on {cpu.product_name}"
    )
    gpus = len([gpu for gpu in verdict.gpus if not gpu.switch])
    return f"{kind}, with {gpus} GPU{'s' if gpus != 1 else ''}" if gpus else kind


def _measurements(verdict: Verdict) -> Iterator[tuple[str, str]]:
    cpu = verdict.cpu
    if isinstance(cpu, TdxClaims):
        yield "MRTD", cpu.td.mrtd.hex()
        rtmrs = (cpu.td.rtmr0, cpu.td.rtmr1, cpu.td.rtmr2, cpu.td.rtmr3)
        yield from ((f"RTMR{number}", rtmr.hex()) for number, rtmr in enumerate(rtmrs))
    else:
        yield "measurement", cpu.measurement.hex()


def _when(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


@cache
def _read(name: str) -> str:
    return (files("client_sdk") / "web" / name).read_text()


@cache
def _script() -> str:
    return _read("verify_receipt.mjs") + _read("report.mjs")


@cache
def _policy() -> str:
    script, style = (
        b64encode(sha256(text.encode()).digest()).decode() for text in (_script(), _read("report.css"))
    )
    return f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
