"""Signed notes, checkpoints and proofs, byte for byte as their specifications have them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation.binding import Statement
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.policy import StatementPolicy
from attestation.tlog import (
    Checkpoint,
    LogProof,
    TileReader,
    Tree,
    VerifierKey,
    check_logged,
    dump_proof,
    log_key,
    log_origin,
    own_key,
    parse_checkpoint,
    parse_proof,
    parse_verifier_key,
    predecessor_entry,
    receipt_entry,
    sign_checkpoint,
    verify_checkpoint,
)
from attestation.tlog.merkle import EMPTY_ROOT, inclusion_proof
from attestation.tlog.note import KeyKind, Note, NoteSignature, dump_note, parse_note, sign_text, verify_note
from tests.attestation.test_binding import STATEMENT

# the example in the documentation of golang.org/x/mod/sumdb/note
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SECRET = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
GO_NOTE = f"{GO_TEXT}\n{GO_LINE}".encode()

# the example of c2sp.org/tlog-cosignature
SPEC_CHECKPOINT = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
""".encode()

LOG = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
PUBLIC = LOG.public_key().public_bytes_raw()
KEY = VerifierKey(name=log_origin(PUBLIC), key=PUBLIC)
TOKENS = [f"receipt.{i}" for i in range(300)]


def logged(size: int, index: int, tokens: list[str] = TOKENS) -> LogProof:
    """A log of the first receipts, and the proof of one."""
    tree, files = Tree().extend([receipt_entry(token) for token in tokens[:size]])
    checkpoint = sign_checkpoint(Checkpoint(origin=KEY.name, size=size, root=tree.root), LOG)
    proof = inclusion_proof(index, size, TileReader(files.get, size).nodes)
    return LogProof(index=index, hashes=tuple(proof), checkpoint=checkpoint)


def test_the_note_of_another_implementation() -> None:
    """Key, id and signature are those of Go's example, and signing the text again makes the same bytes."""
    key = parse_verifier_key(GO_KEY)
    assert (str(key), key.name, key.id.hex()) == (GO_KEY, "PeterNeumann", "c74f20a3")
    note = parse_note(GO_NOTE)
    assert note.text == GO_TEXT
    assert verify_note(note, key) is None
    secret = Ed25519PrivateKey.from_private_bytes(b64decode(GO_SECRET)[1:])
    assert dump_note(Note(text=GO_TEXT, signatures=(sign_text(GO_TEXT, "PeterNeumann", secret),))) == GO_NOTE


def test_the_checkpoint_of_the_specification() -> None:
    """Text, names, ids and the witness's time are read as they stand there; all of it is written again."""
    note = parse_note(SPEC_CHECKPOINT)
    checkpoint = parse_checkpoint(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    assert [s.id.hex() for s in note.signatures] == ["033de0ae", "8d66cf3f"]
    assert int.from_bytes(note.signatures[1].signature[:8]) == 1679315147
    assert dump_note(note) == SPEC_CHECKPOINT


def test_keys_of_other_implementations() -> None:
    """Verifier keys of both kinds have the ids that others gave them."""
    witness = parse_verifier_key("remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2")
    assert witness.kind is KeyKind.WITNESS
    assert (
        parse_verifier_key("TEST+7997405c+AQcC+FTVKf0jlTdHDY3rbevmnKxxPjigCXlVtGe6RIr6").kind is KeyKind.LOG
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        GO_KEY.replace("c74f20a3", "c74f20a4"),
        GO_KEY.replace("c74f20a3", "C74F20A3"),
        GO_KEY.replace("+AR", "+AB"),
        GO_KEY + "A",
        "Peter Neumann" + GO_KEY[12:],
        GO_KEY[12:],
    ],
)
def test_what_is_no_verifier_key(text: str) -> None:
    """Another id, kind, length or name is malformed."""
    with pytest.raises(MalformedError):
        parse_verifier_key(text)


def cosigned(time: int = 1_700_000_000, private: Ed25519PrivateKey = OTHER) -> tuple[bytes, VerifierKey]:
    """A checkpoint with a witness's signature, as c2sp.org/tlog-cosignature says."""
    note = parse_note(logged(5, 2).checkpoint)
    witness = VerifierKey(
        name="witness.example/w", key=OTHER.public_key().public_bytes_raw(), kind=KeyKind.WITNESS
    )
    signature = time.to_bytes(8) + private.sign(f"cosignature/v1\ntime {time}\n{note.text}".encode())
    line = NoteSignature(name=witness.name, id=witness.id, signature=signature)
    return dump_note(replace(note, signatures=(*note.signatures, line))), witness


def test_witnesses() -> None:
    """A cosignature counts where its witness was named, and is nobody's business where not."""
    data, witness = cosigned()
    verify_checkpoint(data, KEY)
    verify_checkpoint(data, KEY, [witness])
    assert verify_note(parse_note(data), witness) == 1_700_000_000
    for wrong in (logged(5, 2).checkpoint, cosigned(private=LOG)[0]):
        with pytest.raises(VerificationError) as error:
            verify_checkpoint(wrong, KEY, [witness])
        assert error.value.check is Check.LOG_WITNESS


CHECKPOINTS: dict[str, tuple[Check, Callable[[str], str]]] = {
    "another size": (Check.LOG_CHECKPOINT, lambda t: t.replace("\n5\n", "\n6\n")),
    "a size with a leading zero": (Check.LOG_FORMAT, lambda t: t.replace("\n5\n", "\n05\n")),
    "a negative size": (Check.LOG_FORMAT, lambda t: t.replace("\n5\n", "\n-5\n")),
    "a size that no log has": (Check.LOG_FORMAT, lambda t: t.replace("\n5\n", f"\n{2**62}\n")),
    "an empty line": (Check.LOG_FORMAT, lambda t: t.replace("\n5\n", "\n5\n\n")),
    "another end of a line": (Check.LOG_FORMAT, lambda t: t.replace("\n5\n", "\n5\r\n")),
    "the origin of another log": (
        Check.LOG_ORIGIN,
        lambda t: t.replace(KEY.name + "\n", log_origin(b"\x09" * 32) + "\n", 1),
    ),
    "another root": (
        Check.LOG_CHECKPOINT,
        lambda t: t.replace(t.split("\n")[2], b64encode(bytes(32)).decode()),
    ),
    "a shorter root": (
        Check.LOG_FORMAT,
        lambda t: t.replace(t.split("\n")[2], b64encode(bytes(31)).decode()),
    ),
    "a line more": (Check.LOG_CHECKPOINT, lambda t: t.replace("=\n\n", "=\nmore\n\n")),
    "the name of another key": (Check.LOG_CHECKPOINT, lambda t: t.replace("— att", "— btt")),
    "another dash": (Check.LOG_FORMAT, lambda t: t.replace("—", "-")),
    "cut at its end": (Check.LOG_FORMAT, lambda t: t.removesuffix("\n")),
    "no signature": (Check.LOG_FORMAT, lambda t: t[: t.rindex("— ")]),
    "a second, wrong signature of the log": (
        Check.LOG_CHECKPOINT,
        lambda t: t + t[t.rindex("— ") :].replace(t[-20:-4], "A" * 16),
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_change_of_a_checkpoint_is_seen(name: str) -> None:
    """Size, root, origin, lines, name and signature: each is refused by its name."""
    check, change = CHECKPOINTS[name]
    good = logged(5, 2).checkpoint.decode()
    assert verify_checkpoint(good.encode(), KEY).size == 5
    changed = change(good)
    assert changed != good
    with pytest.raises((MalformedError, VerificationError)) as error:
        verify_checkpoint(changed.encode(), KEY)
    assert error.value.check is check


def test_a_flipped_bit_anywhere() -> None:
    """No bit of a signed checkpoint can be changed unseen."""
    good = logged(5, 2).checkpoint
    for at in range(len(good)):
        changed = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises((MalformedError, VerificationError)):
            verify_checkpoint(changed, KEY)


def test_a_proof_is_written_as_specified() -> None:
    """The file of c2sp.org/tlog-proof@v1, line by line, with and without extra data."""
    proof = logged(5, 4)
    (sibling,) = (b64encode(h).decode() for h in proof.hashes)
    text = f"c2sp.org/tlog-proof@v1\nindex 4\n{sibling}\n\n".encode() + proof.checkpoint
    assert dump_proof(proof) == text
    assert parse_proof(text) == proof
    extra = replace(proof, extra=b"more", hashes=(), index=0)
    assert dump_proof(extra).startswith(
        b"c2sp.org/tlog-proof@v1\nextra bW9yZQ==\nindex 0\n\n" + KEY.name.encode()
    )
    assert parse_proof(dump_proof(extra)) == extra


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 255, 256, 257, 300])
def test_each_receipt_is_logged(size: int) -> None:
    """A proof holds for its receipt alone."""
    for index in {0, size // 2, size - 1}:
        proof = dump_proof(logged(size, index))
        assert check_logged(proof, TOKENS[index], KEY)[1].size == size
        with pytest.raises(VerificationError) as error:
            check_logged(proof, "another", KEY)
        assert error.value.check is Check.LOG_INCLUSION


EMPTY = sign_checkpoint(Checkpoint(origin=KEY.name, size=0, root=EMPTY_ROOT), LOG)
PROOFS: dict[str, tuple[Check, dict[str, Any]]] = {
    "another index": (Check.LOG_INCLUSION, {"index": 3}),
    "an index that the tree has not": (Check.LOG_INCLUSION, {"index": 300}),
    "no hashes": (Check.LOG_INCLUSION, {"hashes": ()}),
    "other hashes": (Check.LOG_INCLUSION, {"hashes": (bytes(32),) * 3}),
    "a shorter hash": (Check.LOG_FORMAT, {"hashes": (bytes(31),)}),
    "more hashes than any tree is high": (Check.LOG_FORMAT, {"hashes": (bytes(32),) * 63}),
    "a later checkpoint": (Check.LOG_INCLUSION, {"checkpoint": logged(6, 2).checkpoint}),
    "the checkpoint of an empty log": (Check.LOG_INCLUSION, {"checkpoint": EMPTY}),
    "no checkpoint": (Check.LOG_FORMAT, {"checkpoint": b""}),
    "the checkpoint of another log": (Check.LOG_ORIGIN, {"checkpoint": SPEC_CHECKPOINT}),
}


@pytest.mark.parametrize("name", PROOFS)
def test_every_change_of_a_proof_is_seen(name: str) -> None:
    """Index, hashes and checkpoint: each is refused by its name."""
    check, change = PROOFS[name]
    with pytest.raises((MalformedError, VerificationError)) as error:
        check_logged(dump_proof(replace(logged(5, 2), **change)), TOKENS[2], KEY)
    assert error.value.check is check


@pytest.mark.parametrize(
    "text",
    [
        "c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\nextra !!\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 00\n\nx",
        "c2sp.org/tlog-proof@v1\nindex -5\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\n!!\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\n",
    ],
)
def test_what_is_no_proof(text: str) -> None:
    """Another version, no index, other numbers and other base64 are malformed."""
    with pytest.raises(MalformedError):
        parse_proof(text.encode())


def _chop(data: bytes, at: int, junk: bytes) -> bytes:
    return data[:at] + junk + data[at + len(junk) :]


@given(st.binary(max_size=400), st.integers(0, 500))
def test_any_bytes_are_read_or_malformed(junk: bytes, at: int) -> None:
    """Parsers of notes, checkpoints, keys and proofs give a value that makes the same bytes again, or MalformedError."""
    good = dump_proof(logged(5, 2))
    for data in (junk, _chop(good, at, junk)):
        with suppress(MalformedError):
            assert dump_proof(parse_proof(data)) == data
        with suppress(MalformedError):
            assert dump_note(parse_note(data)) == data
        text = data.decode("latin-1")
        with suppress(MalformedError):
            assert parse_checkpoint(text).text == text
        with suppress(MalformedError):
            assert str(parse_verifier_key(text)) == text


def test_limits() -> None:
    """Notes and proofs have a largest size, and a note a largest number of signatures."""
    line = GO_NOTE[GO_NOTE.rindex("—".encode()) :]
    assert len(parse_note(GO_NOTE + line * 99).signatures) == 100
    for data in (GO_NOTE + line * 100, b"x" * 65537):
        with pytest.raises(MalformedError):
            parse_note(data)
    with pytest.raises(MalformedError):
        parse_proof(b"x" * 100_000)


def with_log(key: bytes | None, origin: str | None = None) -> Statement:
    return replace(STATEMENT, keys=replace(STATEMENT.keys, log_ed25519=key), log_origin=origin)


def test_which_log_a_statement_names() -> None:
    """Its own by its key, another's by key and origin, or none, which is said by name."""
    assert log_key(with_log(PUBLIC)) == KEY == own_key(KEY.name)
    assert log_key(with_log(PUBLIC, "example.com/log")).name == "example.com/log"
    assert own_key("example.com/log") is None
    assert own_key(KEY.name.upper()) is None
    with pytest.raises(VerificationError) as error:
        log_key(STATEMENT)
    assert error.value.check is Check.LOG_MISSING


def test_entries_are_hashes() -> None:
    """Nothing but digests is ever published, and the first entry is not one that a receipt could have."""
    assert len(receipt_entry("a.b.c")) == len(predecessor_entry(b"")) == 32
    assert predecessor_entry(b"") != predecessor_entry(b"x")


def test_a_policy_may_require_a_log() -> None:
    """With `require_log`, a statement that names no log is refused by name."""
    policy = StatementPolicy(any_model=True, any_config=True, require_log=True)
    assert [violation.check for violation in policy.check(STATEMENT)] == [Check.POLICY_LOG]
    assert policy.check(with_log(PUBLIC)) == []
