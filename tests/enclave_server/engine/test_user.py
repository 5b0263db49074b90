"""The engine as a user of its own: as root, these tests start real processes of other users."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclave_server import as_user
from enclave_server.engine import child as engine_child
from enclave_server.engine.installed import find_engine
from enclave_server.engine.supervisor import Engine
from enclave_server.engine.user import open_to
from enclave_server.prefork import SharedStatus
from tests.servers import gateway_settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")

# What a process may do, in the kernel's words.
TELL = "import re; print(dict(re.findall(r'^(Uid|Gid|Groups|Cap...):[ \\t]*(.*?)[ \\t]*$', open('/proc/self/status').read(), re.M)))"


def told(*command: str) -> dict[str, str]:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=240
    )
    return dict(eval(done.stdout.splitlines()[-1]))  # noqa: S307 - what our own line above printed


def system_python() -> str:
    """One that every user may run; the environment's own may lie where only its owner may go."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("no Python that every user may run")
    return python


@as_root
def test_root_becomes_the_user_and_keeps_two_capabilities(tmp_path: Path) -> None:
    """What is started is USER, and of root's rights may do no more than become yet another user."""
    script = shutil.copy(as_user.__file__, str(tmp_path))
    python = system_python()
    seen = told(python, "-I", "-S", script, "nobody", python, "-c", TELL)
    nobody = pwd.getpwnam("nobody")
    assert seen["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert seen["Gid"].split() == [str(nobody.pw_gid)] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"):
        assert int(seen[name], 16) == as_user.KEEP


@as_root
def test_a_worker_has_no_capability_left() -> None:
    """What reads requests cannot become another user, and neither can what it starts."""
    drop = (
        "from enclave_server.as_user import become, give_up_capabilities as drop; become('nobody'); drop();"
    )
    script = f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); {drop} exec({TELL!r})"
    seen = told(sys.executable, "-c", script)
    assert {int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


@as_root
@pytest.mark.parametrize("isolation", ["none", "auto"])
def test_the_engine_is_another_user_without_rights(tmp_path: Path, isolation: str) -> None:
    """The engine has the user and the group that it was given, no other group and no capability."""
    nobody = pwd.getpwnam("nobody")
    with TemporaryDirectory() as private:
        os.chown(private, -1, nobody.pw_gid)
        Path(private).chmod(0o770)
        (Path(private) / "left").mkdir()
        user = f"{nobody.pw_uid}:{nobody.pw_gid}"
        python = system_python()
        start = [sys.executable, "-I", "-S", engine_child.__file__, isolation, user, private]
        with subprocess.Popen(
            [*start, python, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first, line = process.stdout.readline(), process.stdout.readline()
            process.wait(60)  # before its lifeline is closed, which would kill it
        assert first.split()[0].isdecimal(), first
        assert process.returncode == 0
        seen = dict(eval(line))  # noqa: S307 - what our own line above printed
        assert seen["Uid"].split() == [str(nobody.pw_uid)] * 4
        assert seen["Gid"].split() == [str(nobody.pw_gid)] * 4
        assert seen.get("Groups", "") == ""
        assert {int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert not (Path(private) / "left").exists()


def test_without_the_right_it_refuses_by_name(tmp_path: Path) -> None:
    """A gateway that may not become the engine's user does not start the engine as itself."""
    source = Path(engine_child.__file__).read_text()
    nobody_special = "import os, sys\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    script = (
        nobody_special + "sys.argv = ['engine_child', 'none', '1234:1234', '/nonexistent', '/bin/true']\n"
    )
    done = subprocess.run(
        [
            system_python(),
            "-I",
            "-S",
            "-c",
            script + source.replace("from __future__ import annotations", ""),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == engine_child.REFUSED, done.stderr
    assert done.stdout.startswith("engine_user: cannot become 1234:1234")


def test_unknown_and_unfit_users_are_refused(tmp_path: Path) -> None:
    """No such user, root, and the gateway's own user are named as what they are."""
    with pytest.raises(ValueError, match="engine_user: there is no user 'nobody-at-all'"):
        open_to("nobody-at-all", tmp_path / "engine")
    with pytest.raises(ValueError, match="neither root nor the gateway's own user"):
        open_to("root", tmp_path / "engine")


# An engine of the standard library alone, so that any user's Python can run it.
STAND_IN = """#!{python}
import http.server, os, socketserver, sys
if "-c" in sys.argv:
    sys.exit(print("1.2.3", "/nonexistent", sep="\\n"))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{{"version": "1.2.3"}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self): return "gateway"
    def log_message(self, *_): pass
path = next(a for a in sys.argv if a.startswith("--uds=")).removeprefix("--uds=")
socketserver.ThreadingUnixStreamServer(path, Answer).serve_forever()
"""


@as_root
async def test_the_gateway_reaches_an_engine_of_another_user(tmp_path: Path) -> None:
    """It answers on a socket for its group, in a directory that lists itself to nobody; and nothing of it is left."""
    nobody = pwd.getpwnam("nobody")
    with TemporaryDirectory(prefix="run-") as short, TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # noqa: PTH101, S103 - no secret, one call
        python = Path(place) / "python"
        python.write_text(STAND_IN.format(python=system_python()))
        python.chmod(0o755)
        settings = gateway_settings(
            tmp_path, engine_python=python, runtime_dir=short, engine_isolation="none", engine_user="nobody"
        )
        engine = Engine(settings, find_engine(python), SharedStatus())
        await engine.start()
        try:
            async with asyncio.timeout(120):
                while engine.unready is not None:  # noqa: ASYNC110 - what is waited for is another process
                    await asyncio.sleep(0.02)
            seen = {path: path.stat() for path in (Path(short), engine.socket)}
        finally:
            await engine.stop()
        assert seen[Path(short)].st_mode & 0o777 == 0o710
        assert (seen[engine.socket].st_uid, seen[engine.socket].st_mode & 0o777) == (nobody.pw_uid, 0o770)
        assert not engine.socket.parent.exists()
