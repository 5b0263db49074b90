"""`attested provision URL`: an owner's secrets for an enclave, once it is verified, and proof that it has them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    PolicyError,
    UnavailableError,
    VerificationError,
    Violation,
)
from attestation.policy import Policy
from attestation.provisioning import MAX_SECRETS_BYTES, MEDIA_TYPE, PATH, seal_secrets
from attestation.verdict import Verdict
from client_sdk.commands.ending import unsettled
from client_sdk.commands.options import AsJson, ChannelOption, PolicyFile, Url
from client_sdk.exits import exit_code
from client_sdk.outcome import ask, foreign, proven
from client_sdk.present import clean, failure, reasons, working
from client_sdk.sealing import Channel, error_code
from client_sdk.terms import load_policy
from client_sdk.tls import unpinned_context
from client_sdk.transport import DEFAULT_CHANNEL, check_url

_ADVICE = {
    Check.SECRET_SIGNATURE: "Give the private key of the configuration's `owner_key` with --key",
    Check.SECRET_STATEMENT: "The enclave changed its keys meanwhile, or a balancer asked another one: try again, at its own address",
    Check.SECRET_TIME: "Set this machine's clock, or have the operator set the enclave's",
    Check.SECRET_NAME: "Give every secret that the configuration lists in `secrets`, and no other",
    Check.SECRET_VALUE: "docs/secrets.md says what each secret has to be",
    Check.SECRET_AGAIN: "Restart the gateway, then give it these",
}
_POLL_SECONDS = 1.0


def provision(  # a command's options are its parameters
    url: Url,
    policy: PolicyFile,
    secret: Annotated[
        list[str],
        typer.Option(
            "--secret", metavar="NAME=FILE", help="A secret and the file that holds it; repeatable."
        ),
    ],
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="The owner's Ed25519 private key (PEM).")
    ],
    channel: ChannelOption = DEFAULT_CHANNEL,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="For evidence that shows the secrets.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Verify an enclave, and give it the secrets that it waits for: signed by its owner, and sealed to it alone.

    Ends well when the enclave's evidence shows the digest of exactly these secrets. To give the same ones again changes nothing.
    `secrets_digests` of the policy are not asked of it before, and others than these are not given.
    """
    values, owner = _read_secrets(secret, as_json=as_json), _read_owner(key, as_json=as_json)
    notes, digest, error = [], b"", None
    try:
        demanded = load_policy(policy)
        accepted = replace(demanded, statement=replace(demanded.statement, secrets_digests=frozenset()))
        notes = foreign(accepted)
        with working(f"verifying {url}"):
            verdict = ask(url, accepted, channel)
        message, digest = seal_secrets(
            values,
            owner=owner,
            keys=verdict.statement.keys,
            statement=verdict.statement_digest,
            now=datetime.now(UTC),
        )
        _check_pinned(demanded.statement.secrets_digests, digest)
        _send(url, message)
        with working(f"waiting until the evidence of {url} shows them"):
            verdict = _shown(url, accepted, channel, digest, time.monotonic() + wait)
        notes += proven(verdict)
    except AttestationError as exc:
        error = exc
    if as_json:
        typer.echo(json.dumps(_summary(url, values, digest, error)))
    elif error is not None:
        typer.echo("\n".join(map(clean, [f"NOT PROVISIONED  {url}", *reasons(error)])), err=True)
    else:
        lines = [f"PROVISIONED  {url}", *notes, f"given: {', '.join(values)}"]
        typer.echo("\n  ".join(map(clean, lines)))
    raise typer.Exit(exit_code(error))


def _check_pinned(pinned: frozenset[bytes], digest: bytes) -> None:
    if pinned and digest not in pinned:
        expected = " or ".join(sorted(one.hex() for one in pinned))
        raise PolicyError([Violation(Check.POLICY_SECRETS, expected, digest.hex())])


def _summary(
    url: str, names: Sequence[str] | dict[str, bytes], digest: bytes, error: AttestationError | None
) -> dict[str, object]:
    return {
        "url": url,
        "provisioned": error is None,
        "secrets": list(names),
        "digest": digest.hex() or None,
        **failure(error),
    }


def _read_secrets(given: Sequence[str], *, as_json: bool) -> dict[str, bytes]:
    values = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not name or not equals or name in values:
            raise typer.BadParameter("--secret is NAME=FILE, each name once")
        values[name] = _read(Path(file), as_json=as_json)
    if sum(map(len, values.values())) > MAX_SECRETS_BYTES:
        raise typer.BadParameter(f"more than {MAX_SECRETS_BYTES} bytes of secrets")
    return values


def _read_owner(file: Path, *, as_json: bool) -> Ed25519PrivateKey:
    try:
        owner = load_pem_private_key(_read(file, as_json=as_json), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        owner = None
    if not isinstance(owner, Ed25519PrivateKey):
        raise typer.BadParameter(f"{file} holds no Ed25519 private key in PEM without a password")
    return owner


def _read(file: Path, *, as_json: bool) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        unsettled(f"cannot read {file}: {exc.strerror}", as_json=as_json, also={"provisioned": False})


def _send(url: str, message: bytes) -> None:
    """Only the enclave can open it: so it does not matter where the connection ends."""
    where = check_url(httpx.URL(url)) + PATH
    try:
        with httpx.Client(verify=unpinned_context(), trust_env=False, timeout=30) as client:
            answer = client.post(where, content=message, headers={"Content-Type": MEDIA_TYPE})
    except httpx.HTTPError as exc:
        raise UnavailableError(Check.EVIDENCE_FETCH, f"{url}: {type(exc).__name__}") from exc
    if answer.status_code != 204:
        raise _refused(answer.status_code, error_code(answer.content[: 64 * 1024]))


def _refused(status: int, code: str) -> AttestationError:
    """What an answer that nobody has signed says; at worst it hides that the secrets arrived."""
    found = next(
        (
            check
            for check in (*_ADVICE, Check.SECRET_FORMAT, Check.SEALED_OPEN)
            if code == check.replace(".", "_")
        ),
        None,
    )
    if found is not None:
        return VerificationError(
            found, f"the gateway refused the secrets: {code}", advice=_ADVICE.get(found, "")
        )
    detail = f"the gateway did not take the secrets: status {status}" + (f" ({code})" if code else "")
    if status == 404:
        return VerificationError(Check.SECRET_NAME, detail, advice="Its configuration lists no `secrets`")
    return UnavailableError(Check.EVIDENCE_FETCH, detail)


def _shown(url: str, policy: Policy, channel: Channel, digest: bytes, end: float) -> Verdict:
    """The first verdict on evidence that shows these secrets."""
    while True:
        try:
            verdict = ask(url, policy, channel)
            shown = verdict.statement.secrets
        except UnavailableError:
            verdict, shown = None, None
        if verdict is not None and shown == digest:
            return verdict
        if shown is not None:
            raise VerificationError(
                Check.SECRET_SHOWN,
                f"expected the secrets' digest {digest.hex()}, the statement has {shown.hex()}",
                advice="Others were given to this enclave before; restart the gateway, then give it these",
            )
        if time.monotonic() >= end:
            raise UnavailableError(
                Check.SECRET_SHOWN,
                "the enclave's evidence does not show the secrets",
                advice="See its log and `/readyz`, or wait longer with --wait; giving the same secrets again does no harm",
            )
        time.sleep(_POLL_SECONDS)
