"""A model as one encrypted file, and the way back into memory. docs/models.md has the layout.

Promises: whoever has not the key learns sizes alone; no byte leaves this module that is not what the key's holder encrypted,
at its place in its file; plaintext goes to memory and nowhere else; and when opening fails, nothing of it is left.
Each run has keys of its own, from a salt drawn for it, so no nonce ever meets a second plaintext: not in another pack, and not in
what was removed of a run that was refused because a file changed meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

import rfc8785

from enclave_server.model.chunks import (
    CHUNK,
    HEADER,
    KEY_BYTES,
    MAGIC,
    SALT_BYTES,
    AlteredError,
    Part,
    bad_pack,
    decrypted,
    encrypt,
)
from enclave_server.model.image import salt_of
from enclave_server.model.manifest import (
    MAX_FILES,
    REFUSED_SUFFIXES,
    SIGNATURE,
    File,
    Halted,
    Manifest,
    ModelError,
    ModelProblem,
    on_all_cores,
    read_manifest,
)

MAX_INDEX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A pack whose index was opened."""

    path: Path
    header: bytes
    model_id: str
    files: tuple[tuple[File, Part], ...]

    @property
    def size(self) -> int:
        """In plain."""
        return sum(file.size for file, _ in self.files)


def parse_key(data: bytes) -> bytes:
    """A model key, or ModelError. Nothing of it is quoted."""
    if len(data) != KEY_BYTES:
        raise _bad_key(f"a model key has {KEY_BYTES} bytes, this one {len(data)}")
    return data


def write_pack(
    directory: Path, out: Path, key: bytes, *, model_id: str, salt: bytes | None = None
) -> Manifest:
    """Encrypt every file of `directory`, its signature too, to `out`. A salt is given for vectors alone, and never twice."""
    salt_of(model_id)  # refuses what is no repo@revision
    if out.resolve().is_relative_to(directory.resolve()):
        raise bad_pack(f"{out} would lie in the model itself", "Write it elsewhere")
    manifest = read_manifest(directory)
    files = [*manifest.files, *_signature(directory)]
    index = rfc8785.dumps({"v": 1, "id": model_id, "files": [asdict(file) for file in files]})
    if len(index) > MAX_INDEX_BYTES:
        raise bad_pack(f"its index has {len(index)} bytes, more than {MAX_INDEX_BYTES}", "Give shorter names")
    header = MAGIC + (salt or os.urandom(SALT_BYTES)) + len(index).to_bytes(8, "big")
    partial = out.with_name(out.name + ".partial")
    try:
        file = partial.open("xb")
    except FileExistsError:
        raise bad_pack(f"there is {partial}", "Remove it, unless another run is writing it") from None
    try:
        with file:
            file.write(header)
            encrypt(file, [index], Part(label=b"index", offset=HEADER, size=len(index)), key, header)
            for each, part in _parts(files, file.tell()):
                encrypt(file, _read(directory, each), part, key, header)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def open_index(path: Path, key: bytes) -> Pack:
    """Read which files a pack has. A wrong key, and a pack that is not whole, are refused."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
            length = int.from_bytes(header[-8:], "big")
            if len(header) != HEADER or not header.startswith(MAGIC) or not 0 < length <= MAX_INDEX_BYTES:
                raise bad_pack(
                    f"{path} is no encrypted pack", "Name the file that `model pack --encrypt` wrote"
                )
            part = Part(label=b"index", offset=HEADER, size=length)
            text = b"".join(decrypted(file.fileno(), part, key, header))
            size = os.fstat(file.fileno()).st_size
    except AlteredError:
        raise _bad_key(f"{path} does not open with this key, or its beginning was altered") from None
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    model_id, files = _parse_index(path, text)
    pack = Pack(path=path, header=header, model_id=model_id, files=tuple(_parts(files, part.end)))
    end = pack.files[-1][1].end
    if size != end:
        raise bad_pack(f"{path} has {size} bytes instead of {end}", "It was cut or added to: copy it again")
    return pack


def read_pack(path: Path, key: bytes) -> Manifest:
    """Decrypt every file and hash it; nothing is kept."""
    return _each_file(open_index(path, key), key, lambda _, chunks: chunks, None)


def unpack(path: Path, key: bytes, directory: Path, *, stop: Event | None = None) -> Manifest:
    """Decrypt a pack into `directory`, hashing what goes there. The caller has made sure that it is memory, and empty.

    Files can be read by their owner and group. Whatever fails, the caller removes what came so far.
    """
    pack = open_index(path, key)
    free = os.statvfs(directory)
    if pack.size > free.f_bavail * free.f_frsize:
        raise ModelError(
            ModelProblem.PLACE,
            f"{directory} has room for {free.f_bavail * free.f_frsize} bytes, the model has {pack.size}",
            advice="Give the machine more memory, or the tmpfs a larger size=",
        )

    def write(file: File, chunks: Iterator[bytes]) -> Iterator[bytes]:
        target = directory / file.path
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        opened = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
        with os.fdopen(opened, "wb", buffering=0) as out:
            for chunk in chunks:
                left = memoryview(chunk)
                while left:  # where the room ends, a part is written, and only the next call fails
                    left = left[out.write(left) :]
                yield chunk

    return _each_file(pack, key, write, stop)


_Through = Callable[[File, Iterator[bytes]], Iterator[bytes]]


def _each_file(pack: Pack, key: bytes, through: _Through, stop: Event | None) -> Manifest:
    """Decrypt all files on all cores, and hash what comes `through`."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(pack.path.open("rb"))
        except OSError as exc:
            raise _unreadable(pack.path, exc) from exc

        def hashed(each: tuple[File, Part], halted: Halted) -> File:
            file, part = each
            digest = sha256()
            try:
                for chunk in through(file, decrypted(opened.fileno(), part, key, pack.header)):
                    digest.update(chunk)
                    if halted():
                        raise InterruptedError
            except InterruptedError:
                raise
            except OSError as exc:
                raise _unreadable(pack.path, exc) from exc
            return File(path=file.path, size=file.size, sha256=digest.hexdigest())

        found = on_all_cores(hashed, sorted(pack.files, key=lambda each: -each[0].size), stop=stop)
    return Manifest(tuple(sorted((file for file in found if file.path != SIGNATURE), key=lambda f: f.path)))


def _parts(files: list[File], offset: int) -> Iterator[tuple[File, Part]]:
    for file in files:
        part = Part(label=b"file\x00" + file.path.encode(), offset=offset, size=file.size)
        offset = part.end
        yield file, part


def _signature(directory: Path) -> Iterator[File]:
    with suppress(FileNotFoundError):
        content = (directory / SIGNATURE).read_bytes()
        yield File(path=SIGNATURE, size=len(content), sha256=sha256(content).hexdigest())


def _read(directory: Path, file: File) -> Iterator[bytes]:
    """The file's chunks, if it is still the one that was hashed."""
    digest, size = sha256(), 0
    with (directory / file.path).open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise ModelError(
            ModelProblem.CHANGED, f"{directory / file.path} changed", advice="Let nobody write to the model"
        )


def _parse_index(path: Path, text: bytes) -> tuple[str, list[File]]:
    """The key's holder wrote it; it is read as strictly as if a stranger had."""
    try:
        raw = json.loads(text)
        model_id, entries = raw["id"], raw["files"]
        canonical = rfc8785.dumps(raw) == text  # so no name twice
        sound = raw.keys() == {"v", "id", "files"} and raw["v"] == 1 and isinstance(model_id, str)
        sound = sound and all(_sound(**entry) for entry in entries)
        files = [File(**entry) for entry in entries]
        names = {file.path for file in files}
        folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise _bad_index(path) from exc
    once = len(names) == len(files) and not names & folders
    if not (canonical and sound and once and 0 < len(files) <= MAX_FILES + 1):
        raise _bad_index(path)
    return model_id, files


def _sound(*, path: Any, size: Any, sha256: Any) -> bool:
    """A file that may be made below a directory."""
    if not isinstance(path, str) or type(size) is not int or not isinstance(sha256, str) or "\x00" in path:
        return False
    name = PurePosixPath(path)
    inside = str(name) == path and path != "." and not name.is_absolute() and ".." not in name.parts
    return inside and 0 <= size < 2**60 and name.suffix.lower() not in REFUSED_SUFFIXES


def _bad_index(path: Path) -> ModelError:
    return bad_pack(f"the index of {path} is none", "Make the pack again with `model pack --encrypt`")


def _bad_key(detail: str) -> ModelError:
    return ModelError(
        ModelProblem.PACK_KEY,
        detail,
        advice="Give the key that the pack was made with: openssl rand -out model.key 32",
    )


def _unreadable(path: Path, exc: OSError) -> ModelError:
    where = exc.filename if isinstance(exc.filename, str) else str(path)
    return bad_pack(f"{path} cannot be opened: {where}: {exc.strerror}", "Look at disk, memory and rights")
