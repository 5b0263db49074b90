"""Reference values over their life: what each step makes, what it refuses, and that others' tools verify what is signed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from attestation.references import (
    PREDICATE_TYPE,
    References,
    dump_envelope,
    dump_references,
    dump_statement,
    parse_envelope,
    parse_references,
    read_references,
    sign,
)
from attestation.release import Build, Machines, Release
from attestation.reviewers import ReferencesPolicy, Reviewer
from attestation.tdx import TdxMeasurement
from attestation.vtpm import VtpmMeasurement
from enclave_server.__main__ import cli
from image.cli import main
from image.errors import ImageError
from image.refs import DAY, Edition, add, retire, revoke, sign_edition

NOW = 1_795_000_000
KEYS: list[Any] = [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
OLD = Release(id="1.3", tdx=(TdxMeasurement(mrtd=b"\x01" * 48),), snp=frozenset({b"\x01" * 48}))
NEW = Release(id="1.4", snp=frozenset({b"\x02" * 48}), vtpm=(VtpmMeasurement(pcr4=b"\x02" * 32),))
FIRST = References(name="acme", epoch=3, issued=NOW - DAY, expires=NOW + 89 * DAY, releases=(OLD,))
NEWER = replace(FIRST, epoch=1, releases=(NEW,))
EDITION = Edition(now=NOW)


def ids(references: References) -> list[tuple[str, int | None]]:
    return [(r.id, r.until) for r in references.releases]


def test_a_new_release_overlaps_with_the_one_before() -> None:
    """N and N-1 are accepted together for a while; the edition is one epoch later and lasts as long as the one before."""
    made = add(FIRST, NEWER, EDITION, overlap=7 * DAY)
    assert ids(made) == [("1.3", NOW + 7 * DAY), ("1.4", None)]
    assert (made.epoch, made.issued, made.expires) == (4, NOW, NOW + 90 * DAY)
    third = replace(NEWER, releases=(replace(NEW, id="1.5"),))
    later = add(made, third, Edition(now=NOW + 7 * DAY, days=10), overlap=DAY)
    assert ids(later) == [("1.3", NOW + 7 * DAY), ("1.4", NOW + 8 * DAY), ("1.5", None)]
    assert later.releases[0].build is None
    assert later.expires == NOW + 17 * DAY


def test_an_end_is_never_put_off() -> None:
    """A release that ends before the overlap does ends when it would have; without an overlap, at once."""
    soon = replace(FIRST, releases=(replace(OLD, until=NOW + 10),))
    assert ids(add(soon, NEWER, EDITION, overlap=DAY))[0] == ("1.3", NOW + 10)
    assert ids(retire(soon, ["1.3"], EDITION, at=NOW + 20)) == [("1.3", NOW + 10)]
    assert ids(add(FIRST, NEWER, EDITION, overlap=0)) == [("1.3", NOW), ("1.4", None)]


def test_retired() -> None:
    """Later, or at once; it stays in the list, so that it is refused by name."""
    both = add(FIRST, NEWER, EDITION, overlap=30 * DAY)
    assert ids(retire(both, ["1.3"], EDITION, at=NOW + DAY)) == [("1.3", NOW + DAY), ("1.4", None)]
    assert ids(retire(both, ["1.3", "1.4"], EDITION, at=NOW)) == [("1.3", NOW), ("1.4", NOW)]


def test_revoked() -> None:
    """All that it measures goes on the list, with the reason; also of a release that is in the list no more, or that an ended one resembles."""
    both = add(FIRST, NEWER, EDITION, overlap=30 * DAY)
    made = revoke(both, ["1.4"], "CVE-2026-0001", EDITION)
    assert [r[0] for r in ids(made)] == ["1.3"]
    (entry,) = made.revoked
    assert (entry.id, entry.reason, entry.snp, entry.vtpm) == ("1.4", "CVE-2026-0001", NEW.snp, NEW.vtpm)
    gone = revoke(NEWER, ["1.3"], "leaked", EDITION, gone=FIRST.releases)
    assert gone.revoked[0].tdx == OLD.tdx
    twin = replace(FIRST, releases=(OLD, replace(OLD, id="1.2", until=NOW)))
    assert [r.id for r in revoke(twin, ["1.3"], "leaked", EDITION).releases] == ["1.2"]
    assert revoke(made, ["1.4"], "again", EDITION, gone=both.releases).revoked == made.revoked


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda: add(FIRST, replace(NEWER, name="other"), EDITION, overlap=1), "releases of 'acme'"),
        (lambda: add(FIRST, FIRST, EDITION, overlap=1), "'1.3' already"),
        (
            lambda: add(
                revoke(FIRST, ["1.3"], "bad", EDITION),
                replace(FIRST, releases=(replace(OLD, id="2"),)),
                EDITION,
                overlap=1,
            ),
            "which is revoked: bad",
        ),
        (lambda: retire(FIRST, ["9"], EDITION, at=NOW), "no release '9'; there are 1.3"),
        (lambda: revoke(FIRST, ["9"], "r", EDITION), "no release '9'"),
        (lambda: revoke(FIRST, ["1.3"], " ", EDITION), "reason"),
        (
            lambda: revoke(replace(FIRST, releases=(OLD, replace(OLD, id="1.3b"))), ["1.3"], "r", EDITION),
            "'1.3b' measures the same",
        ),
        (
            lambda: revoke(replace(FIRST, releases=(Release(id="none"),)), ["none"], "r", EDITION),
            "names no measurement",
        ),
        (lambda: retire(replace(FIRST, expires=NOW - DAY), ["1.3"], EDITION, at=NOW), "--days"),
    ],
    ids=[
        "another name",
        "an id twice",
        "revoked under another id",
        "retire nobody",
        "revoke nobody",
        "no reason",
        "what another measures",
        "what measures nothing",
        "no lifetime",
    ],
)
def test_refused_steps(step: Any, why: str) -> None:
    """What would mislead a client is refused before anybody signs it."""
    with pytest.raises(ImageError, match=why):
        step()


def test_reviewers_sign_beside_each_other() -> None:
    """Each adds a signature to the same edition, in any order, and the same key none twice."""
    envelope = sign_edition(FIRST, KEYS[:1], now=NOW)
    both = sign_edition(FIRST, KEYS, now=NOW, existing=envelope)
    again = sign_edition(read_references(both), KEYS[::-1], now=NOW, existing=both, previous=envelope)
    assert len(parse_envelope(both)[1]) == 2
    assert again == both
    reviewers = tuple(Reviewer(name=str(i), key=_pem(key.public_key())) for i, key in enumerate(KEYS))
    assert ReferencesPolicy(file="", name="acme", reviewers=reviewers).verify(both) == FIRST


def test_a_new_edition_takes_the_place_of_the_old_one() -> None:
    """Over another edition in the same file nobody else's signature stays."""
    envelope = sign_edition(FIRST, KEYS, now=NOW)
    payload, signatures = parse_envelope(
        sign_edition(add(FIRST, NEWER, EDITION, overlap=1), KEYS[:1], now=NOW, existing=envelope)
    )
    assert len(signatures) == 1
    assert b'"epoch":4' in payload


@pytest.mark.parametrize(
    ("edition", "why"),
    [
        (replace(FIRST, releases=()), "epoch 3 does not rise over 3"),
        (replace(FIRST, epoch=2), "epoch 2 does not rise over 3"),
        (replace(FIRST, epoch=4, name="other"), "is of 'acme'"),
        (replace(FIRST, epoch=4, expires=NOW), "have ended"),
    ],
    ids=["the same epoch", "an older one", "another name", "over"],
)
@pytest.mark.parametrize("where", ["existing", "previous"])
def test_an_edition_that_does_not_follow(edition: References, why: str, where: str) -> None:
    """It is not signed: a client that has seen the one before would refuse it, or be led back."""
    before = sign_edition(FIRST, KEYS[:1], now=NOW)
    with pytest.raises(ImageError, match=why):
        sign_edition(edition, KEYS[:1], now=NOW, **{where: before})


def test_a_revocation_stays() -> None:
    """An edition that lost one, or a part of what one refuses, is not signed."""
    denied = revoke(FIRST, ["1.3"], "bad", EDITION)
    before = sign_edition(denied, KEYS[:1], now=NOW)
    with pytest.raises(ImageError, match=r"1\.3: revoked in the previous edition"):
        sign_edition(replace(denied, epoch=9, revoked=()), KEYS[:1], now=NOW, previous=before)
    hollow = replace(denied.revoked[0], snp=frozenset())
    with pytest.raises(ImageError, match=r"1\.3: revoked in the previous edition"):
        sign_edition(replace(denied, epoch=9, revoked=(hollow,)), KEYS[:1], now=NOW, previous=before)


# ------------------------------------------------------------------------------------------ the commands


def _pem(key: Any) -> str:
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@dataclass
class Desk:
    """A folder of a reviewer: keys, a first edition, a newer build."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, status: int = 0) -> str:
        """What a command says; names of files are in the folder."""
        given = [str(self.folder / a) if a.endswith((".json", ".pem", ".pub")) else a for a in arguments]
        with pytest.raises(SystemExit) as ended:
            main("refs", given)
        said = self.capsys.readouterr()
        assert (ended.value.code or 0) == status, said.err
        return said.out if status == 0 else said.err

    def read(self, name: str = "refs.json") -> References:
        return read_references((self.folder / name).read_bytes())


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    for number, key in enumerate(KEYS):
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{number}.pem").write_bytes(private)
        (tmp_path / f"{number}.pub").write_text(_pem(key.public_key()))
    now = int(time())
    (tmp_path / "refs.json").write_bytes(dump_references(replace(FIRST, issued=now, expires=now + 90 * DAY)))
    (tmp_path / "new.json").write_bytes(dump_references(NEWER))
    return Desk(tmp_path, capsys)


def test_the_life_of_references(desk: Desk) -> None:
    """Signed, a release added, one retired, one revoked; each edition replaces the file and is one epoch later."""
    assert "1 signature\n" in desk.run("sign", "refs.json", "--key", "0.pem", "-o", "signed.json")
    assert "2 signatures" in desk.run("sign", "refs.json", "--key", "1.pem", "-o", "signed.json")
    assert "epoch 4, to be signed" in desk.run(
        "add", "refs.json", "new.json", "--id", "1.4.0", "--overlap", "7"
    )
    assert [r[0] for r in ids(desk.read())] == ["1.3", "1.4.0"]
    said = desk.run("sign", "refs.json", "--key", "0.pem", "-o", "next.json", "--previous", "signed.json")
    assert "1 signature\n" in said
    desk.run("retire", "refs.json", "1.3", "--after", "3")
    assert ids(desk.read())[0][1] == pytest.approx(time() + 3 * DAY, abs=60)
    desk.run("retire", "refs.json", "1.3", "--at", "2100-01-01T00:00:00Z", "-o", "other.json")
    desk.run("retire", "refs.json", "1.3")
    desk.run("revoke", "refs.json", "1.4.0", "1.3", "--reason", "CVE-2026-0001", "--from", "next.json")
    assert {r.id for r in desk.read().revoked} == {"1.3", "1.4.0"}
    assert desk.read().epoch == 7


def test_machines_of_a_new_release(desk: Desk) -> None:
    """Those named are the only ones; an id of another length is none."""
    chip, ppid = "01" * 64, "02" * 16
    desk.run("add", "refs.json", "new.json", "--chip-id", chip, "--ppid", ppid)
    machines = Machines(chip_ids=frozenset({bytes.fromhex(chip)}), ppids=frozenset({bytes.fromhex(ppid)}))
    assert [r.machines for r in desk.read().releases] == [None, machines]
    for wrong in (("--chip-id", ppid), ("--ppid", chip)):
        assert "CHIP_ID has 64" in desk.run("add", "refs.json", "new.json", *wrong, status=1)


@pytest.mark.parametrize(
    "step",
    [
        ("add", "refs.json", "new.json", "--overlap", "99999999999"),
        ("retire", "refs.json", "1.3", "--after", "99999999999"),
        ("retire", "refs.json", "1.3", "--days", "99999999999"),
    ],
    ids=["overlap", "after", "days"],
)
def test_an_edition_that_nobody_could_read_is_not_written(desk: Desk, step: tuple[str, ...]) -> None:
    """A time after all years is refused, and the file stays as it was."""
    before = desk.read()
    assert "times are Unix seconds" in desk.run(*step, status=1)
    assert desk.read() == before


def test_revoked_twice_in_one_breath(desk: Desk) -> None:
    """The same id twice is one entry, which can be read again."""
    desk.run("revoke", "refs.json", "1.3", "1.3", "--reason", "leaked")
    assert [r.id for r in desk.read().revoked] == ["1.3"]


def test_what_is_wrong_is_one_line(desk: Desk) -> None:
    """No traceback, and nothing written."""
    before = (desk.folder / "refs.json").read_bytes()
    assert "no release '9'" in desk.run("retire", "refs.json", "9", status=1)
    assert "both say when" in desk.run("retire", "refs.json", "1.3", "--at", "1", "--after", "1", status=2)
    desk.run("sign", "refs.json", "--key", "0.pem", "-o", "signed.json")
    two = replace(NEWER, releases=(NEW, replace(NEW, id="b")))
    (desk.folder / "two.json").write_bytes(dump_references(two))
    assert "has 2" in desk.run("add", "refs.json", "two.json", "--id", "x", status=1)
    assert (desk.folder / "refs.json").read_bytes() == before
    (desk.folder / "lower.json").write_bytes(dump_references(replace(desk.read(), epoch=2)))
    assert "does not rise" in desk.run("sign", "lower.json", "--key", "0.pem", "-o", "signed.json", status=1)
    assert "no release '9'" in desk.run("show", "refs.json", "--entry", "9", status=1)
    assert "no unencrypted private key" in desk.run(
        "sign", "refs.json", "--key", "0.pub", "-o", "signed.json", status=1
    )
    (desk.folder / "bad.json").write_text("{")
    assert "references.format" in desk.run("add", "refs.json", "bad.json", status=1)


def test_shown_in_words(desk: Desk) -> None:
    """Who has signed is said of the keys that were asked about, and of no others."""
    full = replace(
        OLD,
        until=int(time()) + DAY,
        machines=Machines(ppids=frozenset({bytes(16)})),
        build=Build(id=bytes(32)),
    )
    revoked = revoke(replace(FIRST, releases=(full, NEW)), ["1.4"], "leaked", Edition(now=int(time())))
    (desk.folder / "refs.json").write_bytes(dump_references(revoked))
    desk.run("sign", "refs.json", "--key", "0.pem", "-o", "signed.json")
    said = desk.run("show", "signed.json", "--key", "0.pub", "--key", "1.pub")
    assert "acme, epoch 4" in said
    assert "measurements: 1 tdx, 1 snp" in said
    assert "machines of Intel's alone" in said
    assert "revoked: 1.4: leaked" in said
    assert "0.pub: has signed this" in said
    assert "1.pub: has NOT signed this" in said
    assert parse_references(desk.run("show", "signed.json", "--json").encode()) == revoked


def test_the_command_is_there() -> None:
    """`enclave-server refs` leads to it."""
    done = CliRunner().invoke(cli, ["refs", "--help"])
    assert done.exit_code == 0, done.output
    assert "revoke" in done.output


COSIGN = os.environ.get("COSIGN") or shutil.which("cosign")


@pytest.mark.skipif(not COSIGN, reason="cosign is not installed (COSIGN names another place)")
@pytest.mark.parametrize("number", [0, 1], ids=["Ed25519", "P-256"])
def test_cosign_verifies_what_we_sign(desk: Desk, number: int) -> None:
    """Offline, with the reviewer's key: the entry of a release is what the statement names; an altered one is refused."""
    desk.run("sign", "refs.json", "--key", f"{number}.pem", "-o", "signed.json")
    entry = desk.folder / "entry"
    entry.write_text(desk.run("show", "signed.json", "--entry", "1.3"))

    def cosign() -> subprocess.CompletedProcess[str]:
        options = ["--insecure-ignore-tlog=true", "--type", PREDICATE_TYPE, "--key", f"{number}.pub"]
        command = [str(COSIGN), "verify-blob-attestation", *options, "--signature", "signed.json", "entry"]
        home = {"HOME": str(desk.folder), "PATH": os.environ["PATH"]}
        return subprocess.run(
            command, check=False, cwd=desk.folder, env=home, capture_output=True, text=True, timeout=240
        )

    done = cosign()
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "Verified OK")
    whole = (desk.folder / "signed.json").read_bytes()
    payload, signatures = parse_envelope(whole)
    altered = dump_envelope(payload.replace(b'"epoch":3', b'"epoch":4'), signatures)
    (desk.folder / "signed.json").write_bytes(altered)
    assert cosign().returncode != 0
    (desk.folder / "signed.json").write_bytes(whole)
    entry.write_text(entry.read_text().replace('"1.3"', '"1.4"'))
    assert cosign().returncode != 0


def test_a_subject_is_its_entry(desk: Desk) -> None:
    """What `show --entry` prints is what the signed statement has the digest of."""
    statement = json.loads(dump_statement(desk.read()))
    printed = desk.run("show", "refs.json", "--entry", "1.3").encode()
    assert statement["subject"] == [{"name": "1.3", "digest": {"sha256": sha256(printed).hexdigest()}}]
    assert parse_envelope(dump_envelope(b"x", [sign(b"x", KEYS[0])]))[0] == b"x"
