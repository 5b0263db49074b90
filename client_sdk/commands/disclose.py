"""`attested disclose BUNDLE`: some messages and choices of a saved chat, for somebody who is to see no more of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from attestation.disclosure import disclose as make_disclosure
from attestation.disclosure import dump_disclosure
from attestation.errors import AttestationError
from client_sdk.audit_work import read_bundle
from client_sdk.commands.ending import leave, not_written
from client_sdk.commands.options import AsJson

_Numbers = list[int] | None


def disclose(
    file: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="Of chats that asked for it, with bytes: what --save writes."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
    message: Annotated[
        _Numbers, typer.Option("--message", min=0, metavar="N", help="Of the request, from 0; repeatable.")
    ] = None,
    choice: Annotated[
        _Numbers, typer.Option("--choice", min=0, metavar="N", help="Of the answer, from 0; repeatable.")
    ] = None,
    exchange: Annotated[
        int, typer.Option("--exchange", min=0, metavar="N", help="Which one of the bundle's, from 0.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one message of a chat without the rest; `attested audit` verifies what is shown.

    The file has the receipt and its evidence. It has neither the other messages nor what they could be guessed with.
    """
    messages, choices = set(message or ()), set(choice or ())
    if not messages and not choices:
        raise typer.BadParameter("nothing to show: give --message or --choice")
    try:
        bundle = read_bundle(file)
        if exchange >= len(bundle.exchanges):
            raise LookupError(f"there is no exchange {exchange}: there are {len(bundle.exchanges)}")
        made = make_disclosure(bundle, bundle.exchanges[exchange], messages=messages, choices=choices)
        output.write_bytes(dump_disclosure(made))
    except LookupError as exc:
        raise typer.BadParameter(str(exc)) from exc
    except AttestationError as error:
        leave(error, as_json=as_json, head="nothing was written")
    except OSError as exc:
        not_written(output, exc, as_json=as_json)
    hidden = len(made.messages) - len(messages), len(made.choices) - len(choices)
    if as_json:
        shown = {"messages": sorted(messages), "choices": sorted(choices)}
        hid = {"messages": hidden[0], "choices": hidden[1]}
        typer.echo(json.dumps({"file": str(output), "shown": shown, "hidden": hid}))
        return
    typer.echo(
        f"{output}: {len(messages)} message(s) and {len(choices)} choice(s) shown, {hidden[0]} and {hidden[1]} hidden"
    )
