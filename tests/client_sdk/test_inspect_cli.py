"""`attested inspect`: every kind of file in words, told by its content, and never judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from attestation.bundle import dump_bundle
from attestation.collateral import Collateral
from attestation.disclosure import dump_disclosure
from attestation.errors import MalformedError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence, dump_evidence
from client_sdk.cli import app
from client_sdk.describe import describe
from tests.attestation.test_binding import STATEMENT
from tests.attestation.test_disclosure import GOOD as SHOWN
from tests.client_sdk.evidence_files import NONCE, NOW, amazon, amd, intel, nvidia
from tests.client_sdk.test_audit_cli import GOOD as SAVED
from tests.vectors import VECTORS, needs_vectors


def _document(cpu: TdxEvidence | SnpEvidence) -> bytes:
    collateral = Collateral(intel=intel().collateral(NOW), amd=amd().collateral(NOW))
    gpus = nvidia().evidence(NONCE)
    return dump_evidence(Evidence(statement=STATEMENT.to_bytes(), cpu=cpu, gpu=gpus, collateral=collateral))


KINDS: list[tuple[str, Callable[[], bytes]]] = [
    ("TDX quote, version 4", lambda: intel().quote(bytes(64))),
    ("TDX quote, version 5", lambda: intel().quote(bytes(64), version=5)),
    ("TDX quote, version 4", lambda: intel().quote(bytes(64)).hex().encode()),
    ("Intel collateral", lambda: intel().collateral(NOW).to_json()),
    ("SEV-SNP report, version 3", lambda: amd().report(bytes(64))),
    ("AWS Nitro attestation document", lambda: amazon().document(NOW)),
    ("AWS Nitro attestation document", lambda: amazon().document(NOW, tagged=True)),
    ("NVIDIA GPU evidence", lambda: nvidia().evidence(NONCE)),
    ("NVIDIA SPDM measurements", lambda: nvidia().devices(NONCE)[0].report),
    ("NVIDIA reference manifest (RIM)", lambda: nvidia().collateral(NOW).rims[0]),
    ("NVIDIA collateral", lambda: nvidia().collateral(NOW).to_json()),
    ("OCSP answer", lambda: nvidia().collateral(NOW).ocsp[0]),
    ("certificates", lambda: amd().collateral(NOW).chain),
    ("certificate", lambda: amd().collateral(NOW).vek),
    ("revocation list", lambda: amd().collateral(NOW).crl),
    ("evidence document", lambda: _document(TdxEvidence(intel().quote(bytes(64))))),
    ("evidence document", lambda: _document(SnpEvidence(amd().report(bytes(64))))),
    ("saved answers", lambda: dump_bundle(SAVED)),
    ("disclosure of a saved chat", lambda: dump_disclosure(SHOWN)),
    ("SGX quote", lambda: b"\x03\x00\x02\x00" + bytes(500)),
    ("JSON web token", lambda: b"eyJhbGciOiJub25lIn0.eyJhIjogMX0."),
]


@pytest.mark.parametrize(("kind", "make"), KINDS, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(KINDS)])
def test_each_kind_is_told_by_its_content(kind: str, make: Callable[[], bytes], tmp_path: Path) -> None:
    """The name of the kind comes first, and that nothing was judged; the JSON form says the same."""
    file = tmp_path / "file"
    file.write_bytes(make())
    result = CliRunner().invoke(app, ["inspect", str(file)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{kind}: read, not judged")
    found = json.loads(CliRunner().invoke(app, ["inspect", str(file), "--json"]).stdout)
    assert (found["kind"], found["judged"]) == (kind, False)
    assert found["content"]


def test_what_a_quote_says_is_shown(tmp_path: Path) -> None:
    """Names and values as the format has them, the certificate chain by its subjects."""
    file = tmp_path / "quote"
    file.write_bytes(intel().quote(bytes(range(64))))
    output = CliRunner().invoke(app, ["inspect", str(file)]).output
    assert f"report_data: {bytes(range(64)).hex()}" in output
    assert "subject: Intel SGX PCK Certificate" in output


def test_a_saved_answer_is_shown_without_its_words(tmp_path: Path) -> None:
    """What its receipt and evidence say, and how long prompt and answer are: both are in the file, and not in the output."""
    file = tmp_path / "answer.json"
    file.write_bytes(dump_bundle(SAVED))
    output = CliRunner().invoke(app, ["inspect", str(file)]).output
    (exchange,) = SAVED.exchanges
    assert exchange.request is not None
    assert f"request: {len(exchange.request)} bytes" in output
    assert "outcome: complete" in output
    assert "kind: TDX quote" in output
    assert "secret prompt" not in output


@pytest.mark.parametrize(
    ("data", "code"), [(b"hello, world", 2), (b"{}", 2), (b"\x04\x00\x02\x00\x81\x00\x00\x00", 2), (None, 5)]
)
def test_what_cannot_be_read_is_said_in_one_line(data: bytes | None, code: int, tmp_path: Path) -> None:
    """Malformed is 2, a missing file 5; neither is a traceback."""
    file = tmp_path / "file"
    if data is not None:
        file.write_bytes(data)
    result = CliRunner().invoke(app, ["inspect", str(file)])
    assert result.exit_code == code
    assert len(result.output.splitlines()) == 1


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    st.binary(max_size=64),
)
def test_any_bytes_are_described_or_malformed(
    kind: tuple[str, Callable[[], bytes]], edits: list[tuple[int, int]], junk: bytes
) -> None:
    """Evidence with bytes replaced, cut or extended is described or refused, and raises nothing else."""
    data = bytearray(_once(kind[1]) if len(junk) % 8 else junk)
    for position, value in edits:
        if data:
            data[position % len(data)] = value
    try:
        described = describe(bytes(data[: -1 - len(junk)] if len(junk) % 3 == 0 else data))
    except MalformedError:
        return
    json.dumps(described.content)


_MADE: dict[int, bytes] = {}


def _once(make: Callable[[], bytes]) -> bytes:
    if id(make) not in _MADE:
        _MADE[id(make)] = make()
    return _MADE[id(make)]


@needs_vectors
@pytest.mark.parametrize(
    "pattern",
    [
        "tdx/quotes/*",
        "snp/*/report.bin",
        "nitro/*",
        "nvidia/*/evidence.bin",
        "nvidia/lists/*",
        "nvidia/nras/*",
        "azure-vtpm/*",
        "eventlog/*.bin",
        "roots/*.pem",
    ],
)
def test_real_evidence_of_every_kind_is_described(pattern: str) -> None:
    """Each vendor's own files are recognised; a report of a version that AMD never signed may be refused."""
    assert VECTORS is not None
    files = sorted(VECTORS.glob(pattern))
    assert files
    for file in files:
        try:
            assert describe(file.read_bytes()).content
        except MalformedError:
            assert "-v1-" in str(file) or "trustee" in str(file)
