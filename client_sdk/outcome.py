"""What asking one enclave came to, link by link and in words: for `verify`, `doctor` and the proxy's status page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.roots import is_vendor
from attestation.tdx.verify import TdxClaims
from client_sdk.chains import DOCUMENT
from client_sdk.present import Line, State, walk
from client_sdk.sealing import Channel
from client_sdk.transport import attested_transport

if TYPE_CHECKING:
    from attestation.policy import Policy
    from attestation.verdict import Verdict

CHANNEL = {
    Channel.SEALED_AND_PINNED: "the connection ends at the attested TLS key",
    Channel.PINNED: "the connection ends at the attested TLS key",
    Channel.SEALED: "what is sealed to the attested key is opened",
}
_OF_THE_CHANNEL = (Check.CHANNEL_TLS_KEY, "sealed.", "receipt.")


def probe_path(channel: Channel) -> str:
    """A route to ask for when nothing is wanted but a verdict."""
    return "/healthz" if channel.pins else "/v1/models"  # of the two, only the latter can be sealed


def ask(url: str, policy: Policy, channel: Channel) -> Verdict:
    """The verdict on what answers at `url`, over the channel that a request would take."""
    try:
        where = httpx.URL(url).copy_with(path=probe_path(channel), query=None, fragment=None)
        with httpx.Client(transport=attested_transport(policy, channel=channel)) as client:
            verdict: Verdict = client.get(where).extensions["attestation"].verdict
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise UnavailableError(Check.EVIDENCE_FETCH, f"{url}: {type(exc).__name__}: {exc}") from exc
    return verdict


def lines_of(error: AttestationError | None, channel: Channel, *, gpus: bool) -> list[Line]:
    """The chain link by link; the last one is the channel that a request would take."""
    # without GPUs, and where a refusal leaves open whether there are any, nothing of them has passed
    skipped = () if gpus else [link.title for link in DOCUMENT if link.covers(Check.GPU_CHAIN)]
    title = CHANNEL[channel]
    if error is not None and error.check.startswith(_OF_THE_CHANNEL):  # everything before it held
        state = State.UNDECIDED if isinstance(error, UnavailableError) else State.REFUSED
        return [*walk(DOCUMENT, None, skipped=skipped), Line(title, state)]
    lines = walk(DOCUMENT, error, skipped=skipped)
    return [*lines, Line(title, State.NOT_REACHED if error else State.PASSED)]


def proven(verdict: Verdict) -> list[str]:
    """What was found, in a few calm lines."""
    cpu, statement = verdict.cpu, verdict.statement
    if isinstance(cpu, TdxClaims):
        machine = f"Intel TDX, TCB {cpu.tcb_status}"
    else:
        machine = f"AMD SEV-SNP on {cpu.product_name}"
    machine += ", under Azure's paravisor" if verdict.vtpm else ""
    gpus = ", ".join(f"{g.model} (driver {g.driver})" for g in verdict.gpus if not g.switch) or "none"
    secrets = statement.secrets
    return [
        f"machine: {machine}, vouched for by {cpu.root.name!r}",
        f"GPUs: {gpus}",
        f"model: {', '.join(statement.model.names)}, digest {statement.model.digest.hex()[:16]}…",
        f"engine: {statement.engine.name} {statement.engine.version}",
        *([] if secrets is None else [f"the owner's secrets: digest {secrets.hex()}"]),
        f"evidence and collateral: good until {verdict.valid_until:%Y-%m-%dT%H:%M:%SZ}",
    ]


def foreign(policy: Policy) -> list[str]:
    """Roots of the policy that are no vendor's, in one line."""
    roots = policy.roots
    groups = (roots.intel, roots.amd, roots.nvidia_device, roots.nvidia_rim)
    names = sorted({repr(root.name) for group in groups for root in group if not is_vendor(root)})
    if not names:
        return []
    whose = "which is" if len(names) == 1 else "which are"
    return [
        f"SIMULATED: the policy trusts {', '.join(names)}, {whose} no hardware vendor's; this proves nothing about hardware"
    ]
