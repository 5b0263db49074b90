"""A model that lies encrypted on disk and open in memory: from when its owner gave the key until the gateway ends."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import pwd
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from enclave_server.log import log
from enclave_server.model.check import Loading
from enclave_server.model.manifest import ModelError, ModelProblem, check_digest, check_unchanged, stamps_of
from enclave_server.model.pack import unpack
from enclave_server.model.signature import check_publisher, parse_public_key
from enclave_server.prefork import SharedStatus
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings

OPENED = ".attested-model-opened"  # beside the model's files, before any of them; nothing is in it
_IN_MEMORY = {0x01021994, 0x858458F6}  # tmpfs, ramfs: statfs(2)


class PackedModel:
    """In the engine's keeper, which alone has use for the key. `close` is for whoever outlives it."""

    def __init__(self, settings: Settings, pack: Path, secrets: Secrets, status: SharedStatus) -> None:
        self._settings, self._pack, self._secrets, self._status = settings, pack, secrets, status
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._claim = -1  # a file that stays open for as long as this process lives
        prepare_place(settings.model_dir)

    async def open(self) -> None:
        """Wait for the key, then decrypt and hash. Raises ModelError, and leaves nothing then."""
        await self._secrets.arrival()
        key = self._secrets.model_key
        self._secrets.drop()
        self._status.unready = "model_opening"
        log.info("model is opened", model=self._settings.model_name)
        stop = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(self._open, key, stop))
        try:
            await asyncio.shield(work)
        except BaseException:
            stop.set()
            await asyncio.wait([work])
            self.close()
            raise
        self._status.unready = "engine_starting"

    def _open(self, key: bytes, stop: threading.Event) -> None:
        try:
            self._unpack(key, stop)
        except OSError as exc:
            raise _bad_place(f"{self._settings.model_dir} cannot be used ({exc.strerror})") from exc

    def _unpack(self, key: bytes, stop: threading.Event) -> None:
        settings, directory = self._settings, self._settings.model_dir
        self._claim = claim(directory)
        manifest = unpack(self._pack, key, directory, stop=stop)
        check_digest(manifest, settings.model_digest, self._pack)
        if settings.model_signing_key is not None:
            check_publisher(directory, manifest, parse_public_key(settings.model_signing_key))
        if settings.engine_user is not None:
            _open_to_group(directory, pwd.getpwnam(settings.engine_user).pw_gid)
        self._stamps = stamps_of(directory)
        log.info("model checked", model_digest=settings.model_digest, files=len(manifest.files))

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[Loading]:
        """Its files are known to be right; the engine must have loaded these."""
        yield self

    def look(self) -> None:
        """Nothing is under way."""

    async def passed(self) -> None:
        await asyncio.to_thread(check_unchanged, self._settings.model_dir, self._stamps)

    def close(self) -> None:
        """Leave nothing of it."""
        empty(self._settings.model_dir)


def prepare_place(directory: Path) -> None:
    """An empty directory in memory for the gateway's user alone, or ModelError. What a killed gateway left there is removed."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        if _kind(directory) not in _IN_MEMORY:
            raise _bad_place(f"{directory} is not in memory")
        if (directory / OPENED).exists():
            os.close(claim(directory, made=True))  # refused while its gateway lives
            log.warning("a model that a killed gateway left in memory is removed")
            empty(directory)
        entries = any(directory.iterdir())
    except OSError as exc:
        raise _bad_place(f"{directory} cannot be made ({exc.strerror})") from exc
    if entries:
        raise _bad_place(f"{directory} is not empty")


def claim(directory: Path, *, made: bool = False) -> int:
    """The open file that says that a living gateway's files are here: what its process writes from now on is its to remove."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if made else os.O_CREAT | os.O_EXCL)
    opened = os.open(directory / OPENED, flags, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise _bad_place(f"{directory} is another gateway's, which is running") from None
    return opened


def empty(directory: Path) -> None:
    """Remove everything, and last what says whose it is."""
    for entry in sorted(directory.iterdir(), key=lambda path: path.name == OPENED):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _open_to_group(directory: Path, group: int) -> None:
    for folder, _, files in os.walk(directory):
        for path, mode in ((Path(folder), 0o750), *((Path(folder, name), 0o640) for name in files)):
            os.chown(path, -1, group)
            path.chmod(mode)


def _kind(path: Path) -> int:
    status = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), status) != 0:
        raise _bad_place(f"{path} cannot be looked at ({os.strerror(ctypes.get_errno())})")
    return int.from_bytes(status.raw[: ctypes.sizeof(ctypes.c_long)], "little")


def _bad_place(detail: str) -> ModelError:
    return ModelError(
        ModelProblem.PLACE,
        detail,
        advice="Name an empty directory on a tmpfs in model_dir, such as /run/enclave/model",
    )
