"""The model digest covers every file's path, size and bytes, and nothing but plain files of safe kinds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

import pytest

from enclave_server.model.manifest import (
    REFUSED_SUFFIXES,
    ModelError,
    ModelProblem,
    check_model,
    read_manifest,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "a.txt").write_text("a")
    return folder


def test_digest_is_that_of_the_protocol(model: Path) -> None:
    """The digest can be computed by hand from docs/protocol.md §5."""
    names = ["config.json", "model.safetensors", "sub/a.txt"]
    files = []
    for name in names:
        data = (model / name).read_bytes()
        files.append({"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    text = json.dumps({"files": files, "v": 1}, separators=(",", ":"))
    assert read_manifest(model).digest() == hashlib.sha256(text.encode()).digest()


def test_threads_do_not_matter(model: Path) -> None:
    """The manifest is the same however many files are hashed at a time."""
    assert read_manifest(model, threads=1) == read_manifest(model, threads=7)


@pytest.mark.parametrize("change", ["byte", "truncated", "added", "removed", "renamed"])
def test_any_change_is_seen(model: Path, change: str) -> None:
    """A changed, truncated, added, removed or renamed file gives another digest, and the model is refused."""
    before = read_manifest(model).digest().hex()
    assert check_model(model, before).digest().hex() == before
    config = model / "config.json"
    match change:
        case "byte":
            config.write_text("{ ")
        case "truncated":
            os.truncate(model / "model.safetensors", 6999)
        case "added":
            (model / "b.txt").touch()
        case "removed":
            config.unlink()
        case "renamed":
            config.rename(model / "config2.json")
    with pytest.raises(ModelError, match=r"\[model.digest\] .* the settings demand"):
        check_model(model, before)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer_config.json",
        "generation_config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapters/mine/adapter_model.safetensors",
        ".hidden",
    ],
)
def test_templates_and_adapters_count(model: Path, name: str) -> None:
    """Whatever shapes prompts or weights is part of the model, whether it is loaded or merely lies there."""
    before = read_manifest(model).digest()
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("{{ one }}")
    one = read_manifest(model).digest()
    (model / name).write_text("{{ two }}")
    assert len({before, one, read_manifest(model).digest()}) == 3


def test_changed_while_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows for as long as it is hashed is refused, and read no further."""

    class Slow:
        def __init__(self) -> None:
            self._inner = hashlib.new("sha256")

        def update(self, data: bytes) -> None:
            self._inner.update(data)
            with (model / "config.json").open("a") as file:
                file.write(" ")

        def hexdigest(self) -> str:
            return self._inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Slow)
    with pytest.raises(ModelError) as caught:
        read_manifest(model, threads=1)
    assert caught.value.problem is ModelProblem.CHANGED


def test_gone_while_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is named, with what to do."""
    monkeypatch.setattr("enclave_server.model.manifest.list_files", lambda _: [PurePosixPath("gone.json")])
    with pytest.raises(
        ModelError, match=r"\[model.file\] .*gone.json cannot be read .* Let the gateway's user"
    ):
        read_manifest(model)


def test_names_outside_of_unicode(model: Path) -> None:
    """A file whose name is not UTF-8 is refused: the manifest could not name it."""
    Path(os.fsdecode(bytes(model) + b"/\xff")).touch()
    with pytest.raises(ModelError, match="UTF-8"):
        read_manifest(model)


@pytest.mark.parametrize("suffix", sorted(REFUSED_SUFFIXES))
def test_code_is_refused(model: Path, suffix: str) -> None:
    """Pickles and other files that run code when loaded are refused, in any case of letters."""
    (model / f"weights{suffix.upper()}").touch()
    with pytest.raises(ModelError, match="run code"):
        read_manifest(model)


def test_links(model: Path, tmp_path: Path) -> None:
    """Links to files inside are followed; those that leave the directory, or lead to directories, are refused."""
    (model / "inside.json").symlink_to(model / "config.json")
    assert len(read_manifest(model).files) == 4
    (tmp_path / "outside").touch()
    (model / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="leaves"):
        read_manifest(model)
    (model / "out").unlink()
    (model / "loop").symlink_to(model / "sub")
    with pytest.raises(ModelError, match="link to a directory"):
        read_manifest(model)


def test_not_a_model(model: Path, tmp_path: Path) -> None:
    """A missing or empty directory, or one with a pipe in it, is no model."""
    with pytest.raises(ModelError, match="there is no"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="0 files"):
        read_manifest(tmp_path / "empty")
    os.mkfifo(model / "pipe")
    with pytest.raises(ModelError, match="regular"):
        read_manifest(model)


def test_every_problem_is_documented() -> None:
    """docs/models.md has a row for each reason to refuse a model."""
    text = (Path(__file__).parents[3] / "docs/models.md").read_text()
    assert [problem for problem in ModelProblem if f"| `{problem}` |" not in text] == []
