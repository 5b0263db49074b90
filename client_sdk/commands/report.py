"""`attested report FILE`: one saved exchange as one HTML page, for those who will not type a command."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from attestation.audit import Auditor
from attestation.errors import AttestationError
from client_sdk.audit_work import read_bundle
from client_sdk.commands.ending import leave, not_written
from client_sdk.commands.options import AsJson, PolicyFile
from client_sdk.files import parse_time
from client_sdk.present import clean
from client_sdk.report import Report
from client_sdk.terms import load_policy


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")],
    policy: PolicyFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.html", help="Where the page goes.")],
    exchange: Annotated[
        int, typer.Option("--exchange", min=0, metavar="N", help="Which one of the bundle's, from 0.")
    ] = 0,
    at: Annotated[
        datetime | None,
        typer.Option("--at", parser=parse_time, metavar="TIME", help="In place of the receipt's own time."),
    ] = None,
    content: Annotated[bool, typer.Option("--content", help="Show request and answer in the page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Audit one exchange of a bundle, and make a page of it that checks its signatures again in any browser.

    The page is one file, loads nothing, and can be sent to somebody else. Without --content nobody learns from it what
    was asked or answered.
    """
    try:
        bundle = read_bundle(file)
        if exchange >= len(bundle.exchanges):
            raise typer.BadParameter(f"{file} has {len(bundle.exchanges)} exchanges, counted from 0")
        auditor, chosen = Auditor(load_policy(policy), at=at), bundle.exchanges[exchange]
        audited = auditor.audit(bundle, chosen)
        when = at or datetime.fromtimestamp(audited.receipt.time, UTC)
        page = Report(
            verdict=auditor.verdict(bundle, when),
            audited=audited,
            exchange=chosen,
            content=content,
            made=datetime.now(UTC),
        )
        output.write_text(page.to_html(), encoding="utf-8")
    except AttestationError as error:
        leave(error, as_json=as_json)
    except OSError as exc:
        not_written(output, exc, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "receipt": audited.receipt.id, "content": content}))
    else:
        typer.echo(clean(f"{output}: receipt {audited.receipt.id}, checked again by whoever opens it"))
