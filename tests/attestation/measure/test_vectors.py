"""Real event logs: replays equal the registers of their quotes, and say what was booted."""

from __future__ import annotations

import json
from hashlib import sha384
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.measure import (
    Algorithm,
    EventLogClaims,
    EventLogPolicy,
    LogKind,
    Registers,
    Role,
    parse_dstack_log,
    parse_log,
    replay,
    verify_log,
)
from attestation.tdx import parse_quote
from tests.attestation.measure.logs import dstack, dstack_log
from tests.vectors import manifest, needs_vectors, read

pytestmark = needs_vectors
VECTORS = manifest("eventlog")
LOGS = [v for v in VECTORS if not v["files"][0].endswith(".json")]
REPLAYED = [v for v in LOGS if v.get("checked", {}).get("replayed")]
QUOTED = {v["id"]: v for v in LOGS if len(v["files"]) == 2}
BOOTS = [v for v in LOGS if v["id"].startswith("boot-")]


def _by_id(vector: dict[str, Any]) -> str:
    return str(vector["id"])


def _rtmrs(vector: dict[str, Any]) -> Registers:
    td = parse_quote(read(vector["files"][1]), padding=True).td
    return Registers.rtmrs((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3))


def _claims(vector: dict[str, Any]) -> EventLogClaims:
    """Claims under the registers that the log itself leads to, for logs that came without a quote."""
    log = parse_log(read(vector["files"][0]))
    values = replay(log, Algorithm.SHA384)
    return verify_log(log, Registers(kind=log.kind, algorithm=Algorithm.SHA384, values=values))


@pytest.mark.parametrize("vector", REPLAYED, ids=_by_id)
def test_a_replay_gives_the_documented_registers(vector: dict[str, Any]) -> None:
    """Each CCEL replays to exactly the registers that its manifest records."""
    log = parse_log(read(vector["files"][0]))
    assert log.kind is LogKind.CC
    replayed = {f"mr{register}": value.hex() for register, value in replay(log, Algorithm.SHA384).items()}
    assert replayed == vector["checked"]["replayed"]


@pytest.mark.parametrize("vector", BOOTS, ids=_by_id)
def test_a_boot_of_our_own_replays(vector: dict[str, Any]) -> None:
    """TPM logs replay in every bank, and PCR 0 to 7 are all among the registers."""
    log = parse_log(read(vector["files"][0]))
    assert log.kind is LogKind.TPM
    for algorithm in (Algorithm.SHA1, Algorithm.SHA256, Algorithm.SHA384):
        assert set(range(8)) <= set(replay(log, algorithm))


def test_a_log_that_replays_is_accepted() -> None:
    """The log of a live TD leads to RTMR0 to RTMR3 of its quote, and a policy that names what it booted agrees."""
    vector = QUOTED["ccel-cdai-live2"]
    claims = verify_log(parse_log(read(vector["files"][0])), _rtmrs(vector))
    policy = EventLogPolicy(
        kernels=frozenset(claims.digests(Role.KERNEL)),
        initrds=frozenset(claims.digests(Role.INITRD)),
        other_events=frozenset(claims.digests(Role.COMMAND_LINE)) | frozenset(claims.digests(Role.FIRMWARE)),
        any_command_line=True,
    )
    assert policy.check(claims) == []
    assert [v.check for v in EventLogPolicy().check(claims)] == [
        Check.EVENTLOG_KERNEL,
        Check.EVENTLOG_INITRD,
        Check.EVENTLOG_COMMAND_LINE,
        Check.EVENTLOG_FIRMWARE,
    ]


@pytest.mark.parametrize(("name", "register"), [("ccel-cdai-live1", "RTMR2"), ("ccel-dstack", "RTMR1")])
def test_a_log_of_another_boot_is_refused(name: str, register: str) -> None:
    """The first register that differs is named. dstack's guest extends RTMR1 and later past its firmware's log."""
    vector = QUOTED[name]
    with pytest.raises(VerificationError, match=f"{register} is the first register that differs") as failed:
        verify_log(parse_log(read(vector["files"][0])), _rtmrs(vector))
    assert failed.value.check is Check.EVENTLOG_REPLAY


def test_registers_that_a_guest_extends_may_be_left_out() -> None:
    """By name: of RTMR1 to RTMR3 nothing is claimed then, of RTMR0 everything."""
    vector = QUOTED["ccel-dstack"]
    claims = verify_log(parse_log(read(vector["files"][0])), _rtmrs(vector), leave_out={2, 3, 4})
    assert {e.register for e in claims.events} == {"RTMR0"}
    assert claims.left_out == ("RTMR1", "RTMR2", "RTMR3")


def test_a_log_without_sha384_is_refused() -> None:
    """A log of SM3 digests cannot explain RTMRs."""
    vector = next(v for v in LOGS if v["id"] == "ccel-trustee-csv-sm3")
    with pytest.raises(VerificationError, match="SHA384") as failed:
        replay(parse_log(read(vector["files"][0])), Algorithm.SHA384)
    assert failed.value.check is Check.EVENTLOG_ALGORITHM


def test_what_grub_logs_is_covered() -> None:
    """GRUB's command line is a claim in words: the digest covers the text."""
    vector = next(v for v in LOGS if v["id"] == "ccel-alibaba-aael")
    claims = _claims(vector)
    (line,) = claims.command_lines
    assert line.startswith("(hd0,gpt3)/boot/vmlinuz-5.10.134-19.1.al8.x86_64 root=UUID=")
    others = [v.check for v in EventLogPolicy(command_lines=frozenset({line})).check(claims)]
    assert Check.EVENTLOG_COMMAND_LINE not in others
    runtime = [e.data for e in claims.events if e.role is Role.RUNTIME]
    assert runtime[0] == b"LEAA\x24\0\0\0coco.com some-operation some-content"


def test_googles_log_names_its_kernel() -> None:
    """Google's log starts an EFI application from disk; there is no quote to hold it against."""
    claims = _claims(next(v for v in LOGS if v["id"] == "ccel-trustee-gcp"))
    assert len(claims.digests(Role.KERNEL)) == 2


def test_an_exit_from_boot_services_may_be_retried() -> None:
    """A boot that logged a failed first attempt is judged as any other: those events say nothing else."""
    claims = _claims(next(v for v in BOOTS if v["id"] == "boot-disk-uki-qemu10"))
    failure = sha384(b"Exit Boot Services Returned with Failure").digest()
    assert [e.role for e in claims.events if e.digest == failure] == [Role.MARK]


@pytest.mark.parametrize(
    "vector",
    [pytest.param(v, marks=[] if v["id"] == "ccel-cdai-live2" else pytest.mark.slow) for v in LOGS],
    ids=_by_id,
)
def test_a_truncated_log_never_replays(vector: dict[str, Any]) -> None:
    """Cut anywhere, a log is malformed, or it is shorter by events, or only padding is gone."""
    data = read(vector["files"][0])
    whole = parse_log(data)
    for size in range(len(data)):
        try:
            cut = parse_log(data[:size])
        except MalformedError:
            continue
        assert cut.events == whole.events[: len(cut.events)]
        padding = len(data) - len(data.rstrip(b"\xff"))
        assert len(cut.events) < len(whole.events) or size >= len(data) - padding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ccel-cdai-live2"])
def test_no_bit_flip_changes_what_is_claimed(name: str) -> None:
    """A flipped bit is malformed, does not replay, or only changes a description that no digest covers."""
    vector = QUOTED[name]
    data, registers = read(vector["files"][0]), _rtmrs(vector)
    sound = verify_log(parse_log(data), registers)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            claims = verify_log(parse_log(bytes(flipped)), registers)
        except (MalformedError, VerificationError):
            continue
        assert [(e.register, e.digest) for e in claims.events] == [
            (e.register, e.digest) for e in sound.events
        ]
        assert all(e.data in (None, f.data) for e, f in zip(claims.events, sound.events, strict=True))


def test_dstack_evidence_for_snp_is_no_event_log() -> None:
    """It is a container of another kind, without registers to replay into; its events read as dstack's own."""
    data = read("eventlog/dstack-sev-snp-attestation.json")
    with pytest.raises(MalformedError):
        parse_dstack_log(data)
    raw = bytes.fromhex(json.loads(data)["attestation"])
    compose = bytes.fromhex("86e59625be93207bc2351c4d1bba20037cec8e168da6b18f559af5af657b7a23")
    assert b"compose-hash\x80" + compose in raw
    log = parse_dstack_log(dstack_log([dstack("compose-hash", compose), dstack("system-ready", b"")]))
    registers = Registers.rtmrs([replay(log, Algorithm.SHA384).get(i, bytes(48)) for i in (1, 2, 3, 4)])
    dstack_claims = verify_log(log, registers).dstack
    assert dstack_claims is not None
    assert dstack_claims.compose_hash == compose
