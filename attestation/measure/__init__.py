"""Event logs of a measured boot: parsed, replayed into a verified quote's registers, judged. Start at `verify_log`."""

from attestation.measure.claims import EventLogClaims, MeasuredEvent, Role, verify_log
from attestation.measure.dstack import DstackClaims, parse_dstack_log
from attestation.measure.eventlog import Algorithm, Event, EventLog, LogKind, parse_log
from attestation.measure.policy import EventLogPolicy
from attestation.measure.replay import Registers, replay

__all__ = [
    "Algorithm",
    "DstackClaims",
    "Event",
    "EventLog",
    "EventLogClaims",
    "EventLogPolicy",
    "LogKind",
    "MeasuredEvent",
    "Registers",
    "Role",
    "parse_dstack_log",
    "parse_log",
    "replay",
    "verify_log",
]
