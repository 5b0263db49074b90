"""`attested policy …` and docs/policy.md: every field of every policy has its words, in both places."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner, Result

from attestation._table import load_table
from attestation.policy import Policy, parse_policy
from client_sdk.cli import app
from client_sdk.evidence_policy import RAW, EvidencePolicy
from client_sdk.policy_sentences import describe_policy
from client_sdk.policy_words import TABLES

DOCS = (Path(__file__).parent.parent.parent / "docs" / "policy.md").read_text()
EXAMPLE = re.search(r"```toml\n(.*?)```", DOCS, re.DOTALL)
NOTHING = EvidencePolicy()


def run(command: str, text: str, folder: Path) -> Result:
    file = folder / "policy.toml"
    file.write_text(text)
    return CliRunner().invoke(app, ["policy", command, str(file)])


def dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses that a field's type is made of."""
    inner = get_args(hint)
    if inner:
        return [d for part in inner for d in dataclasses_of(part)]
    return [hint] if hasattr(hint, "__dataclass_fields__") else []


def all_dataclasses(root: type) -> set[type]:
    """Every dataclass that a policy is made of, however deep."""
    found: set[type] = set()
    todo = [root]
    while todo:
        cls = todo.pop()
        found.add(cls)
        todo += [d for hint in get_type_hints(cls).values() for d in dataclasses_of(hint) if d not in found]
    return found


def test_every_table_has_words() -> None:
    """A table that is added to the policy has to be explained, and under its own name."""
    top = {name for name, *_ in TABLES if "." not in name}
    assert top == {f.name for f in fields(EvidencePolicy)} >= {f.name for f in fields(Policy)}


@pytest.mark.parametrize(
    ("name", "cls", "words"), [(n, c, w) for n, c, _, w in TABLES], ids=[n for n, *_ in TABLES]
)
def test_every_field_has_words(name: str, cls: type, words: dict[str, tuple[str, str]]) -> None:
    """No field without its two sentences, no sentence without its field, and no number of braces but right."""
    assert list(words) == [f.name for f in fields(cls)]
    for field_name, (with_it, without) in words.items():
        boolean = get_type_hints(cls)[field_name] is bool
        assert (boolean and "{}" not in with_it) or not boolean
        assert "{}" not in without


def section(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading of docs/policy.md, by their first cell."""
    (text,) = re.findall(rf"^##+ `{re.escape(heading)}`.*?(?=^##|\Z)", DOCS, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in rows}


@pytest.mark.parametrize(
    ("name", "cls", "words"),
    [(n, c, w) for n, c, _, w in TABLES if n not in {"azure.snp", "azure.tdx", "azure.event_log"}],
    ids=[n for n, *_ in TABLES if n not in {"azure.snp", "azure.tdx", "azure.event_log"}],
)
def test_the_documentation_has_every_field_with_its_default(
    name: str, cls: type, words: dict[str, tuple[str, str]]
) -> None:
    """docs/policy.md says what the code does: fields, defaults of switches and numbers, and the same words."""
    rows = section(f"[{name}]")
    assert list(rows) == [f.name for f in fields(cls)]
    for spec in fields(cls):
        _, default, with_it, without = rows[spec.name]
        assert (with_it.replace("…", "{}"), without) == words[spec.name]
        if isinstance(spec.default, bool | int):
            assert default == f"`{str(spec.default).lower()}`", spec.name
        if spec.default is None:
            assert default == "none", spec.name


def test_the_documentation_has_every_nested_table() -> None:
    """Fields of measurements, floors, roots and versions, with which of them are required."""
    named = {cls for _, cls, _, _ in TABLES}
    nested = {cls.__name__: cls for cls in all_dataclasses(EvidencePolicy) - named - {EvidencePolicy}}
    headings = {
        "Root": "[[roots.*]]",
        "TdxMeasurement": "[[tdx.measurements]]",
        "TcbFloor": "[[snp.tcb_floors]]",
        "FirmwareVersion": "[snp.min_firmware]",
        "NitroMeasurement": "[[nitro.measurements]]",
        "PcrPolicy": "[[azure.pcrs]]",
        "Reviewer": "[[references.reviewers]]",
        "Revoked": "[[release.revoked]]",
        "Limited": "[[release.accepted]]",
        "Machines": "[release.limited.machines]",
        "VtpmMeasurement": "[[azure.measurements]]",
    }
    assert set(nested) == set(headings)
    for name, heading in headings.items():
        rows = section(heading)
        assert list(rows) == [f.name for f in fields(nested[name])]
        for spec in fields(nested[name]):
            required = spec.default is MISSING and spec.default_factory is MISSING
            assert rows[spec.name][1] == ("yes" if required else "no"), spec.name


def test_the_example_is_a_policy(tmp_path: Path) -> None:
    """What the page shows can be used as it stands, and `explain` marks what it sets."""
    assert EXAMPLE is not None
    policy = parse_policy(EXAMPLE[1])
    assert policy.tdx is not None
    result = run("explain", EXAMPLE[1], tmp_path)
    assert result.exit_code == 0
    assert "  * exactly 1 GPUs must be attested  (count)" in result.output
    assert "    a TD in debug mode is refused  (allow_debug)" in result.output
    assert "[snp] AMD SEV-SNP: refused, because the policy has no such table" in result.output
    assert run("check", EXAMPLE[1], tmp_path).exit_code == 0


def test_an_empty_policy_is_said_to_accept_nothing() -> None:
    """The defaults that refuse are spelt out."""
    lines = list(describe_policy(NOTHING))
    assert "    no model is listed  (model_digests)" in lines
    assert "    nothing is remembered  (name)" in lines
    assert sum("refused, because the policy has no such table" in line for line in lines) == 4
    assert not any(line.startswith("  *") for line in lines)


def test_every_field_is_explained_once() -> None:
    """As many sentences as fields, whichever values they have."""
    lines = [line for line in describe_policy(RAW) if line.startswith("  ")]
    absent = ("event_log", "references")  # RAW has none
    tables = [cls for name, cls, *_ in TABLES if not name.endswith(absent)]
    assert len(lines) == sum(len(fields(cls)) for cls in tables)
    assert not any("{}" in line for line in lines)


def test_roots_of_strangers_and_empty_lists_stand_out(tmp_path: Path) -> None:
    """A root that is no vendor's is said to be none; an empty list accepts nothing where no list asks nothing."""
    text = f'[[roots.intel]]\nname = "mine"\nspki_sha256 = "{"00" * 32}"\n[tdx]\nmr_seam = []\n'
    output = run("explain", text, tmp_path).output
    assert "'mine' (0000000000000000…, which is NO hardware vendor's)" in output
    assert "  * nothing is accepted: the list is empty  (mr_seam)" in output


@pytest.mark.parametrize("command", ["explain", "check"])
@pytest.mark.parametrize(
    "text", ["[tdx]\nallow_debugging = true\n", "[tdx", '[tdx]\nallow_debug = "yes"\n', "tdx = 1\n"]
)
def test_what_is_no_policy_is_refused(command: str, text: str, tmp_path: Path) -> None:
    """Unknown keys, bad TOML and wrong types: 2, in one line that names the key."""
    result = run(command, text, tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith("[policy.format]")


def test_a_policy_of_a_later_version(tmp_path: Path) -> None:
    """What it demands is not known here: malformed, by the name of the key, and what that may mean is said."""
    for text, key in (("[quantum]\nrequired = true\n", "'quantum'"), ("[tdx]\nmin_tcb = 3\n", "'min_tcb'")):
        done = run("check", text, tmp_path)
        assert (done.exit_code, "later version" in done.stderr) == (2, True)
        assert f"has unknown keys {key}; known are '" in done.stderr


def test_a_missing_policy_leaves_the_question_open(tmp_path: Path) -> None:
    """5, and no traceback."""
    assert CliRunner().invoke(app, ["policy", "explain", str(tmp_path / "none")]).exit_code == 5


def test_a_policy_of_the_client_is_one_here_too() -> None:
    """The same text gives the same tables; only nitro and azure are more."""
    assert EXAMPLE is not None
    here = load_table(EvidencePolicy, tomllib.loads(EXAMPLE[1]), "policy")
    there = parse_policy(EXAMPLE[1])
    assert all(getattr(here, f.name) == getattr(there, f.name) for f in fields(Policy))
