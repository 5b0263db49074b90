"""dstack's event logs: recomputed digests, claims of its own events alone, and what policies accept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha384
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.measure import (
    Algorithm,
    EventLogClaims,
    EventLogPolicy,
    Registers,
    parse_dstack_log,
    verify_log,
)
from attestation.measure import (
    replay as replay_log,
)
from attestation.measure.eventlog import MAX_EVENTS
from tests.attestation.measure.logs import ACPI, APP, COMPOSE, PROVIDER, dstack, dstack_events, dstack_log


def _digest(data: bytes) -> bytes:
    return sha384(data).digest()


POLICY = EventLogPolicy(
    any_kernel=True,
    any_initrd=True,
    any_command_line=True,
    other_events=frozenset({_digest(ACPI)}),
    compose_hashes=frozenset({COMPOSE}),
    app_ids=frozenset({APP}),
    key_providers=frozenset({PROVIDER}),
)


def _dstack_claims(events: Sequence[dict[str, Any]]) -> EventLogClaims:
    """Claims on a machine on which exactly these events happened."""
    log = parse_dstack_log(dstack_log(events))
    values = replay_log(log, Algorithm.SHA384)
    return verify_log(log, Registers.rtmrs([values.get(register, bytes(48)) for register in (1, 2, 3, 4)]))


def test_dstacks_events_become_claims() -> None:
    """Digests are computed, not taken from the log; claims are what was measured before the app started."""
    claims = _dstack_claims(dstack_events())
    assert claims.dstack is not None
    assert (claims.dstack.app_id, claims.dstack.compose_hash, claims.dstack.key_provider) == (
        APP,
        COMPOSE,
        PROVIDER,
    )
    assert claims.dstack.ready
    assert claims.events[1].digest == _digest(b"\1\0\0\x08:app-id:" + APP)
    assert POLICY.check(claims) == []


@pytest.mark.parametrize(
    ("name", "payload", "check"),
    [
        ("compose-hash", b"other", Check.EVENTLOG_COMPOSE),
        ("app-id", b"other", Check.EVENTLOG_APP),
        ("key-provider", b"none", Check.EVENTLOG_KEY_PROVIDER),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_another_app_is_refused(name: str, payload: bytes, check: Check, missing: bool) -> None:
    """An event with another payload, or none, is one violation; the field any_… accepts it."""
    events = [dstack(name, payload) if e["event"] == name else e for e in dstack_events()]
    if missing:
        events = [e for e in events if e["event"] != name]
    claims = _dstack_claims(events)
    assert [v.check for v in POLICY.check(claims)] == [check]
    loose = {"compose-hash": "any_compose_hash", "app-id": "any_app_id", "key-provider": "any_key_provider"}[
        name
    ]
    loosened: dict[str, Any] = {loose: True}
    assert replace(POLICY, **loosened).check(claims) == []


def test_what_the_app_measures_is_not_dstacks() -> None:
    """After "system-ready" a compose-hash is the app's own event, which no policy accepts unasked."""
    events = [e for e in dstack_events() if e["event"] != "compose-hash"] + [dstack("compose-hash", COMPOSE)]
    claims = _dstack_claims(events)
    assert claims.dstack is not None
    assert claims.dstack.compose_hash is None
    assert {v.check for v in POLICY.check(claims)} == {Check.EVENTLOG_COMPOSE, Check.EVENTLOG_RUNTIME}


def test_a_hidden_handover_is_still_one() -> None:
    """A host that relabels "system-ready" does not make the app's events dstack's own."""
    measured = b"\1\0\0\x08:system-ready:"
    hidden = dstack("", b"", event_type=1, digest=_digest(measured).hex())
    events = [dstack("app-id", APP), hidden, dstack("compose-hash", COMPOSE)]
    claims = _dstack_claims(events)
    assert claims.dstack is not None
    assert claims.dstack.compose_hash is None


@pytest.mark.parametrize("events", [[dstack("app-id", APP)] * 2, [dstack("key-provider", b"\xff")]])
def test_contradictory_events_are_refused(events: list[dict[str, Any]]) -> None:
    """A name that is measured twice before the handover, or a key provider that is no text, proves nothing."""
    with pytest.raises(VerificationError) as failed:
        _dstack_claims(events)
    assert failed.value.check is Check.EVENTLOG_DSTACK


def test_boot_events_keep_their_digests() -> None:
    """Of boot events the log has the digest and perhaps not the data; the digest is what is replayed."""
    events = [dstack("", b"", imr=0, event_type=0xA, digest=_digest(ACPI).hex()), *dstack_events()]
    assert POLICY.check(_dstack_claims(events)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"imr": 4},
        {"imr": -1},
        {"imr": True},
        {"imr": "3"},
        {"imr": 2},  # dstack's own events go into RTMR3
        {"event_type": 1 << 32},
        {"event_type": 1},  # a boot event without a digest
        {"event_type": 1, "digest": "00"},
        {"event": ""},
        {"event": "a:b"},
        {"event": "é"},
        {"event": 1},
        {"event": ...},
        {"event_payload": "xyz"},
        {"event_payload": None},
        {"digest": "00" * 48},
        {"digest": 1},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_dstack_event_out_of_shape_is_malformed(changes: dict[str, Any]) -> None:
    """Missing, unknown and mistyped members, and a digest that contradicts its event, are refused."""
    with pytest.raises(MalformedError) as failed:
        parse_dstack_log(dstack_log([dstack("app-id", APP, **changes)]))
    assert failed.value.check is Check.EVENTLOG_FORMAT


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b"[" * 100, b'[{"imr":0,"imr":0}]'])
def test_other_json_is_malformed(data: bytes) -> None:
    """A dstack log is a list of objects."""
    with pytest.raises(MalformedError):
        parse_dstack_log(data)


def test_too_many_dstack_events_are_malformed() -> None:
    """The number of events is limited."""
    with pytest.raises(MalformedError):
        parse_dstack_log(b"[" + b"0," * MAX_EVENTS + b"0]")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(dstack("", b""))), inner)
    ),
    max_leaves=8,
)


@given(st.lists(_JSON, max_size=3))
def test_any_json_is_a_dstack_log_or_malformed(events: list[Any]) -> None:
    """No JSON raises anything else."""
    with suppress(MalformedError):
        parse_dstack_log(dstack_log(events))
