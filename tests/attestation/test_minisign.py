"""Minisign's files, as minisign 0.11 itself wrote them, and everything that must not be taken for one."""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.minisign import MAX_SIGNATURE_BYTES, parse_key, verify_minisign

MESSAGE = b"A statement that reviewers sign.\n"
ANN = "RWRWn4AXKBJquWvtDBPO+B7/yeYzAuqsBP89UXLXOj+eD1Pk9P7LH33E"
BOB = "RWSraRFo04nu5w2XrP5WjrxIp5Pjf6gE2Apm0cKwNs49uasL49SL2HCE"
PREHASHED = """\
untrusted comment: by ann
RURWn4AXKBJquXg/0hBmwqHCfIxS5CLQc1tyZ8c5rml7jcG+o600ND3TXHaP0vfdy9X9ltqPQDoNgfnWy+GQtj6JmaWGOKshJA0=
trusted comment: reviewed, ünïcode
BAgCJxeYB18keagKOm7Iga3M4INdzrMiI+s8Y0pdV+pB9X+QAu9aBV78Vv598hSUPFd/b6FsHxSXzhqYUa+hBA==
""".encode()
LEGACY = b"""\
untrusted comment: signature from minisign secret key
RWRWn4AXKBJquWEtTZWngD74BPiTC6I5EZ8KkBqk9m68k54HH8HfwbRYtjvbSZhxljHY/gglyBJEbmypUHYSU9e59z7as8srXg8=
trusted comment: legacy
z4nT6Sdt1cco70HK0Re9za+xKCMbCi4pbtsNsa3Fh1IdAyOYvgJ9vE7hYMihwnvh4xjrHQkwlgwj/AI126AbCA==
"""
BOBS = b"""\
untrusted comment: signature from minisign secret key
RUSraRFo04nu55PSdLWBFAgOtsslQ3mIH3ljASdWLmR/Rh2WkAMMZbqGyfl6xjJUlMkMPTmB16m52fFYR0d5h2PsqTFShvcZcw0=
trusted comment: timestamp:1795281395	file:message.txt	hashed
LFASZFAZUbd1Wo1N4UUZDOva5jOToox1Hd/MuR5LHAe6iBMpWJ0lcOjE7CN7Qyo+SHn3oGUhoLbct7l+loX8AQ==
"""


@pytest.mark.parametrize(
    ("signature", "key", "comment"),
    [
        (PREHASHED, ANN, "reviewed, ünïcode"),
        (LEGACY, ANN, "legacy"),
        (BOBS, BOB, "timestamp:1795281395\tfile:message.txt\thashed"),
    ],
)
def test_what_minisign_wrote(signature: bytes, key: str, comment: str) -> None:
    """Both algorithms verify, with any line ends, and give the trusted comment."""
    for data in (signature, signature.replace(b"\n", b"\r\n"), signature.removesuffix(b"\n")):
        assert verify_minisign(data, parse_key(key), MESSAGE) == comment


def test_the_key_is_read_with_and_without_its_comment() -> None:
    """As the file `minisign.pub`, and as the text that `minisign -P` takes."""
    alone = parse_key(ANN)
    assert alone.id[::-1].hex().upper() == "B96A122817809F56"
    for text in (
        f"untrusted comment: minisign public key B96A122817809F56\n{ANN}\n",
        f"untrusted comment:\r\n{ANN}\r\n",
    ):
        found = parse_key(text)
        assert found.id == alone.id
        assert found.key.public_bytes(Encoding.Raw, PublicFormat.Raw) == b64decode(ANN)[10:]


@pytest.mark.parametrize(
    ("signature", "message", "why"),
    [
        (PREHASHED, MESSAGE + b" ", "over the file"),
        (LEGACY, MESSAGE[:-1], "over the file"),
        (BOBS, MESSAGE, "signed with the key E7EE89D3681169AB, expected B96A122817809F56"),
        (PREHASHED.replace(b"reviewed", b"Reviewed"), MESSAGE, "over the trusted comment"),
        (PREHASHED.replace(b"\nRUR", b"\nRWR"), MESSAGE, "over the file"),
        (
            b"\n".join([*PREHASHED.split(b"\n")[:2], *LEGACY.split(b"\n")[2:]]),
            MESSAGE,
            "over the trusted comment",
        ),
    ],
    ids=["other file", "cut file", "other key", "other comment", "other algorithm", "comment of another"],
)
def test_a_signature_that_does_not_count(signature: bytes, message: bytes, why: str) -> None:
    """Another file, key, comment or algorithm than what was signed."""
    with pytest.raises(VerificationError, match=why) as error:
        verify_minisign(signature, parse_key(ANN), message)
    assert error.value.check is Check.REFERENCES_SIGNATURE


def test_bob_under_anns_id() -> None:
    """The key's id is nobody's proof: the same id with another key verifies nothing."""
    raw = b64decode(BOB)
    forged = b64encode(raw[:2] + b64decode(ANN)[2:10] + raw[10:]).decode()
    with pytest.raises(VerificationError, match="over the file"):
        verify_minisign(PREHASHED, parse_key(forged), MESSAGE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PREHASHED[:-30],
        PREHASHED + b"\n",
        PREHASHED + PREHASHED,
        PREHASHED.replace(b"untrusted", b"trusted", 1),
        b"\n".join(PREHASHED.split(b"\n")[:2]),
        PREHASHED.replace(b"RUR", b"RVR"),
        PREHASHED.replace(b"RUR", b"R*R"),
        PREHASHED.replace(b"by ann", b"x" * MAX_SIGNATURE_BYTES),
    ],
)
def test_no_signature(data: bytes) -> None:
    """What is not exactly two comments and two signatures is malformed."""
    with pytest.raises(MalformedError, match="minisign") as error:
        verify_minisign(data, parse_key(ANN), MESSAGE)
    assert error.value.check is Check.REFERENCES_FORMAT


@pytest.mark.parametrize("text", ["", ANN[:-4], f"{ANN}\n{ANN}", ANN.replace("RWR", "RUR"), "x\n" + ANN, "é"])
def test_no_key(text: str) -> None:
    """One key, of the one algorithm that there is."""
    with pytest.raises(MalformedError, match="minisign"):
        parse_key(text)


@given(st.binary(max_size=400), st.text(max_size=80))
def test_any_bytes(data: bytes, text: str) -> None:
    """A value, or one of the two refusals."""
    with suppress(MalformedError):
        parse_key(text)
    with pytest.raises((MalformedError, VerificationError)):
        verify_minisign(data, parse_key(ANN), MESSAGE)


@given(st.integers(0, len(PREHASHED) - 1), st.integers(1, 255))
@example(PREHASHED.index(b"=") - 1, 1)  # a bit of base64 that decodes to nothing
def test_any_byte_changed(place: int, flip: int) -> None:
    """Only the untrusted comment may be anything: it is not signed."""
    changed = bytearray(PREHASHED)
    changed[place] ^= flip
    if changed.split(b"\n")[1:] != PREHASHED.split(b"\n")[1:]:
        with pytest.raises((MalformedError, VerificationError)):
            verify_minisign(bytes(changed), parse_key(ANN), MESSAGE)
