"""Write docs/tamper.md from the tables that the tests run: `python -m tools.tamper_table > docs/tamper.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from attestation.checks import Check
from tests.attestation import (
    test_bundle,
    test_disclosure,
    test_sealed,
    test_sealed_answer,
    test_sealed_ticket,
)
from tests.attestation.tlog import test_notes
from tests.client_sdk import (
    test_checkpoints,
    test_tamper,
    test_tamper_fields,
    test_tamper_live,
    test_tamper_sealed,
    test_tickets,
)

_TOP = """# Tamper table

What somebody between an enclave and its user may try, and the check that refuses it. Made from the tables that the tests run, by
`python -m tools.tamper_table`; a test holds the two together. What each check says is in [verification.md](verification.md).

Besides, the tests change every single byte of requests, answers, streams, receipts, checkpoints, statements, quotes and sealed messages, and cut each of
them at every byte.
"""
_CLAIMS = """
## Receipts and checkpoints, claim by claim

On the way every claim of a plain answer's receipt, of a checkpoint and of a stream's receipt is changed, dropped, doubled and moved to another place: always `receipt.signature`.
The rest of the table is what happens when the claim is not so and *the enclave's own key signed it*: it shows that the check about each claim works alone. "Believed" is what only the enclave knows; for these, the
measured code and the hardware's word for it are all there is. A doubled claim is always `receipt.format`; the order of claims means nothing.

| claim | plain answer | checkpoint | a stream's receipt | missing |
|---|---|---|---|---|
"""
_SEALED = """
## Sealed requests and chunks, field by field

"Moved" exchanges a field with the one after it, "foreign" takes it from another request or answer of the same client. "The same" are fields that do not differ there. A gateway looks for the statement's key first: there,
another statement is `sealed.key`. The head inside of a seal cannot be altered on the way; a sender that leaves out or doubles one of its members is refused with `sealed.format`.

| field | {ways} |
|---|{lines}|
"""
_CASES = "\n## {title}\n\n| tampering | refused by |\n|---|---|\n"


def page() -> str:
    """The whole page."""
    return _TOP + "".join(_sections()) + _claims() + _fields()


def _sections() -> Iterator[str]:
    live, fields, sealed = test_tamper_live, test_tamper_fields, test_tamper_sealed
    said = dict.fromkeys(live.SAYS, Check.RECEIPT_RESPONSE)
    stripped = {f"the seal taken off: {name}": Check.SEALED_MISSING for name in sealed.STRIPPED}
    heads = dict.fromkeys(test_sealed.HEADS, Check.SEALED_FORMAT)
    yield _cases("Evidence", test_tamper.EVIDENCE_TABLE)
    yield _cases("Plain answers", test_tamper.PLAIN_TABLE, live.LIVE_PLAIN)
    yield _cases("What an answer says, plain or streamed", said)
    yield _cases("Answers of another request or enclave, plain or streamed", live.SCENES)
    yield _cases("Streams", test_tamper.STREAM_TABLE, test_tamper.STREAM_RECEIPTS, live.LIVE_STREAMED)
    yield _cases("Checkpoints", test_checkpoints.TABLE)
    yield _cases("The signature's envelope, of receipts and checkpoints", fields.JWS)
    yield _cases("Sealed requests", sealed.REQUESTS)
    tickets = test_tickets.REQUESTS, test_tickets.SCENES, test_sealed_ticket.FOREIGN
    yield _cases("Requests sealed with a ticket", *tickets)
    yield _cases("Heads inside of a seal, as a sender may write them", heads)
    yield _cases("Sealed answers", test_sealed_answer.TABLE, sealed.CHUNKS, stripped)
    yield _cases("Sealed exchanges, one for another", sealed.SCENES)
    yield _cases("Bundles", test_bundle.TAMPERED)
    yield _cases("Disclosures", test_disclosure.TAMPERED)
    yield _cases("Checkpoints of a log of receipts", test_notes.CHECKPOINTS)
    yield _cases("Proofs that a receipt is logged", test_notes.PROOFS)


def _cases(title: str, *tables: Mapping[str, Any]) -> str:
    """One section; a case is a check, or has it in front. What two tables have, they have to agree on."""
    cases = [(name, case) for table in tables for name, case in table.items()]
    rows = ((name, case if isinstance(case, Check) else case[0]) for name, case in cases)
    return _CASES.format(title=title) + "".join(
        dict.fromkeys(f"| {name} | `{check}` |\n" for name, check in rows)
    )


def _claims() -> str:
    rows = []
    for claim, (_, checks) in test_tamper_fields.SIGNED.items():
        missing = "accepted" if claim in test_tamper_fields.OPTIONAL else f"`{Check.RECEIPT_FORMAT}`"
        if claim == "checkpoints":
            missing = f"as 0: `{Check.STREAM_CHECKPOINT}` in a stream"
        cells = [f"`{claim}`", *(_name(check, "believed") for check in checks), missing]
        rows.append(f"| {' | '.join(cells)} |\n")
    return _CLAIMS + "".join(rows)


def _fields() -> str:
    ways = test_tamper_fields.FIELD_WAYS
    head = _SEALED.format(ways=" | ".join(ways), lines="|".join("---" for _ in ways))
    table = {**test_tamper_fields.REQUEST_FIELDS, **test_tamper_fields.CHUNK_FIELDS}
    rows = (
        f"| {name} | {' | '.join(_name(check, 'the same') for check in checks)} |\n"
        for name, (_, checks) in table.items()
    )
    return head + "".join(rows)


def _name(check: Check | None, otherwise: str) -> str:
    return otherwise if check is None else f"`{check}`"


if __name__ == "__main__":
    sys.stdout.write(page())
