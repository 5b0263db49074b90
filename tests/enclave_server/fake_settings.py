"""Settings of the installed command in front of the stand-in engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.enclave_server.fake_vllm import fake_python
from tests.served import model_settings


def fake_settings(folder: Path, **behaviour: Any) -> dict[str, Any]:
    """For a gateway in `folder/gateway`, with a model beside it and an engine that behaves so."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (folder / "gateway").mkdir()
    python = fake_python(folder / "python", behaviour=behaviour)
    return {**model_settings(model, "fake-model"), "engine_python": str(python)}
