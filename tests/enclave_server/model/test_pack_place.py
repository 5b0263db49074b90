"""Where an encrypted pack is opened: in memory alone, and what one that was killed left there is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_server.model.manifest import ModelProblem
from enclave_server.model.memory import OPENED, claim, prepare_place
from enclave_server.model.pack import unpack
from tests.enclave_server.model.packs import CANARY, KEY, problem


def test_place(tmp_path: Path, memory: Path) -> None:
    """Plaintext goes into an empty directory in memory, and nowhere else."""
    assert problem(lambda: prepare_place(tmp_path / "on a disk")) is ModelProblem.PLACE
    assert problem(lambda: prepare_place(memory / "nothing" / "above")) is ModelProblem.PLACE
    prepare_place(memory)
    assert memory.stat().st_mode & 0o777 == 0o700
    (memory / "something").touch()
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE


def test_what_a_killed_gateway_left(pack: Path, memory: Path) -> None:
    """The next one removes it, and nothing that it did not write: what is somebody's own, or of one that lives, is refused."""
    prepare_place(memory)
    held = claim(memory)
    unpack(pack, KEY, memory)
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE
    os.close(held)  # as a process's end does, whichever
    prepare_place(memory)
    assert not list(memory.iterdir())
    (memory / "config.json").write_text("somebody's own")
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE
    assert (memory / "config.json").exists()


def test_removal_is_taken_up_again(memory: Path) -> None:
    """What says whose files these are goes last, so that a removal that was cut short is finished the next time."""
    prepare_place(memory)
    os.close(claim(memory))
    (memory / "sub").mkdir()
    (memory / "sub" / "weights").write_bytes(CANARY)
    order = list[str]()
    original = Path.unlink

    def unlinked(path: Path, *, missing_ok: bool = False) -> None:
        order.append(path.name)
        original(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlinked)
        prepare_place(memory)
    assert order[-1] == OPENED
    assert not list(memory.iterdir())


ROOM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from enclave_server.model.manifest import ModelError
from enclave_server.model.pack import unpack
try:
    unpack(Path(sys.argv[2]), b"k" * 32, Path(sys.argv[3]))
except ModelError as error:
    print(error)
"""


def test_no_room(pack: Path, tmp_path: Path) -> None:
    """A tmpfs that is too small is said before anything is written to it."""
    place, script = tmp_path / "small", tmp_path / "room.py"
    place.mkdir()
    script.write_text(ROOM)
    shell = 'mount -t tmpfs -o size=1M none "$4" && "$0" "$1" "$2" "$3" "$4" && ls -A "$4"'
    arguments = map(str, (sys.executable, script, Path.cwd(), pack, place))
    command = ["unshare", "-rm", "sh", "-c", shell, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("the kernel allows no mount here")
    assert "[model.place]" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


SHORT = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from enclave_server.model.chunks import CHUNK
from enclave_server.model.manifest import ModelError
from enclave_server.model.pack import unpack
most = 3 * CHUNK - 4096
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    unpack(Path(sys.argv[2]), b"k" * 32, Path(sys.argv[3]))
    print("whole")
except ModelError as error:
    print(error)
"""


def test_room_that_ends_within_the_last_chunk(pack: Path, tmp_path: Path) -> None:
    """A chunk of which only a part was written is no file that was opened."""
    script, place = tmp_path / "short.py", tmp_path / "place"
    script.write_text(SHORT)
    place.mkdir()
    command = list(map(str, (sys.executable, script, Path.cwd(), pack, place)))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[model.pack]" in done.stdout
    assert "File too large" in done.stdout
