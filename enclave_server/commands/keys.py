"""`enclave-server keys`: what an operator does with API keys, at any time, also while gateways run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from enclave_server.access.keys import Key
from enclave_server.access.store import NAME_LENGTH, Store, StoreError, Use
from enclave_server.choices import SecretName
from enclave_server.commands.options import Config
from enclave_server.commands.usage import group
from enclave_server.provisioning import check_pepper
from enclave_server.settings import Settings

cli = group("API keys: who may use the gateway, and how much.")

KeyId = Annotated[str, typer.Argument(help="The key's id, as `list` shows it; never the key itself.")]
_MOST = 10**12  # of any limit: databases hold 64 bits
Requests = Annotated[int | None, typer.Option(min=0, max=_MOST, help="0: what the settings say.")]
Tokens = Annotated[
    int | None, typer.Option(min=0, max=_MOST, help="Prompt and completion; 0: what the settings say.")
]
AtOnce = Annotated[
    int | None, typer.Option(min=0, max=_MOST, help="Requests at once; 0: what the settings say.")
]
Pepper = Annotated[
    Path | None, typer.Option(help="The file that the owner gives to the gateway as `key_pepper`.")
]
When = Annotated[str, typer.Option(help="Such as 90d, 12h, 2027-01-31 (UTC), or never.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@cli.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for; operators see it, nobody else.")],
    tenant: Annotated[str, typer.Option(help="Keys of one tenant share a prefix cache.")] = "",
    expires: When = "never",
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrency: AtOnce = None,
    pepper: Pepper = None,
    config: Config = None,
) -> None:
    """Make a key. It is printed now, and never again."""
    expires_at = _moment(expires)
    if expires_at is not None and expires_at <= time.time():
        raise ValueError(f"--expires: {expires} is over already")
    if not name.strip():
        raise ValueError("a key has a name, by which it can be told from others")
    if max(len(name), len(tenant)) > NAME_LENGTH:
        raise ValueError(f"a name and a tenant may have {NAME_LENGTH} characters")
    if (SecretName.KEY_PEPPER in Settings.load(config).secrets) != (pepper is not None):
        raise ValueError("--pepper is for gateways whose `secrets` list key_pepper, and a must for these")
    with _open(config) as store:
        key, secret = store.create(
            name,
            pepper=None if pepper is None else check_pepper(pepper.read_bytes()),
            tenant=tenant,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute or None,
            tokens_per_minute=tokens_per_minute or None,
            concurrency=concurrency or None,
        )
    typer.echo(f"{key.id}: keep this key now, only a digest of it is stored", err=True)
    typer.echo(secret)


@cli.command(name="list")
def list_keys(as_json: AsJson = False, config: Config = None) -> None:
    """List the keys; never their secrets."""
    with _open(config) as store:
        keys = [_words(key) for key in store.all()]
    if as_json:
        typer.echo(json.dumps(keys, indent=2))
    else:
        short = {"requests_per_minute": "req/min", "tokens_per_minute": "tok/min", "concurrency": "at once"}
        _table([{short.get(name, name): value for name, value in key.items()} for key in keys])


@cli.command()
def limit(
    key_id: KeyId,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrency: AtOnce = None,
    config: Config = None,
) -> None:
    """Change a key's limits; what is not named stays."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    changes = {name: value or None for name, value in given.items() if value is not None}
    if not changes:
        raise ValueError("name at least one limit")
    with _open(config) as store:
        store.change(key_id, **changes)


@cli.command()
def expire(key_id: KeyId, at: When, config: Config = None) -> None:
    """Say when a key ends."""
    expires_at = _moment(at)
    with _open(config) as store:
        store.change(key_id, expires_at=expires_at)


@cli.command()
def revoke(key_id: KeyId, config: Config = None) -> None:
    """End a key for good. Running gateways refuse it within `access_refresh_seconds`."""
    with _open(config) as store:
        store.change(key_id, revoked_at=int(time.time()))


@cli.command()
def usage(
    key_id: Annotated[str | None, typer.Argument(help="One key; all without.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Today and so many days before, less one.")] = 30,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """What keys used: requests let in and refused, and tokens as the engine counted them."""
    with _open(config) as store:
        used = store.use(since=int(time.time()) // 86_400 - days + 1, key_id=key_id)
        names = {key.id: key.name for key in store.all()}
    if key_id is not None and key_id not in names:
        raise StoreError(f"there is no key {key_id}")
    rows = [
        {"id": found, "name": names[found], **{n: getattr(use, n) for n in Use.__slots__}}
        for found, use in used.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _table(rows)


@contextmanager
def _open(config: Path | None) -> Iterator[Store]:
    store = Store(Settings.load(config).access_database)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def _moment(text: str) -> int | None:
    """Unix seconds of a date, or of so many days or hours from now."""
    if text == "never":
        return None
    if span := re.fullmatch(r"(\d{1,5})([dh])", text):
        return int(time.time()) + int(span[1]) * (86_400 if span[2] == "d" else 3600)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no moment: write 90d, 12h, 2027-01-31 (UTC), or never") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _words(key: Key) -> dict[str, Any]:
    status = "usable" if key.usable(time.time()) else "revoked" if key.revoked_at else "expired"
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "status": status,
        "created": _date(key.created_at),
        "expires": _date(key.expires_at),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrency": key.concurrency,
    }


def _date(moment: int | None) -> str | None:
    return None if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%MZ}"


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    lines = [list(rows[0]), *(["-" if v is None else str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
