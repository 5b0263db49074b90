"""What a self-test brings along: a configuration of its own, a model of one small file, and the keys of a simulated machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.policy import Policy, parse_policy
from attestation.simulator.snp import SimulatedSnp
from attestation.tlog import VerifierKey
from attestation.vtpm import VtpmMeasurement
from enclave_server.model.image import make_image
from enclave_server.model.manifest import read_manifest
from image.build import padded
from image.errors import ImageError
from image.guest.cmdline import Measured, command_line, dump_verity, parse_command_line
from image.guest.linux import Refused
from image.machine import HOST, PORT, Boot
from image.selftest.engine import MODEL

EMULATED = ("cryptomgr.notests",)  # the kernel's tests of its own cryptography take a minute under emulation
_CONFIG = """\
host = "0.0.0.0"
port = {port}
tee = "simulated-azure-snp"
simulator_dir = "/models/simulator"
config_identity = "required"
model_dir = "/models"
model_name = "{model}"
model_digest = "{model_digest}"
engine = "http://{host}:{engine}"
access = "open"

[guest]
network = "dhcp"
egress = ["tcp {host}:{engine}"]
model = "{model_disk}"
"""
_WAY_OUT = """\
log_dir = "/var/lib/enclave/log"
log_url = "http://{host}:{closed}"
log_key = "{log_key}"
"""
_POLICY = """
[azure]
any_pcrs = true
allow_no_secure_boot = true
allow_console = true
[azure.snp]
any_measurement = true
[gpu]
required = false
[statement]
model_digests = ["{model_digest}"]
any_config = true
allow_external_engine = true
[[roots.amd]]
name = "{root_name}"
spki_sha256 = "{root_pin}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything but the image itself."""

    config: bytes
    other_config: bytes  # has the gateway connect to a port that no rule opens
    model: Path
    any_image: Policy  # names the simulated machine's root, and no image

    def only(self, measurement: VtpmMeasurement) -> Policy:
        """As a user has it: the one image, by what was predicted."""
        assert self.any_image.azure is not None  # noqa: S101 - it stands in the text above
        azure = replace(self.any_image.azure, any_pcrs=False, measurements=(measurement,))
        return replace(self.any_image, azure=azure)


def make_world(folder: Path, *, engine: int, closed: int) -> World:
    """Write it to `folder`. Both configurations open the way to the engine's port and to nothing else."""
    files = folder / "model"
    machine = SimulatedSnp.load_or_create(files / "simulator")
    (files / "config.json").write_text('{"model_type": "selftest"}\n')
    for path in files.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    disk = make_image(files, folder / "model.img", "selftest/model@1")
    digest = read_manifest(files).digest().hex()
    log = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    config = _CONFIG.format(
        port=PORT,
        host=HOST,
        engine=engine,
        model=MODEL,
        model_digest=digest,
        model_disk=dump_verity(disk.root_hash, disk.data_blocks, disk.salt),
    )
    way_out = _WAY_OUT.format(host=HOST, closed=closed, log_key=VerifierKey(name="selftest", key=log))
    policy = _POLICY.format(
        model_digest=digest, root_name=machine.root.name, root_pin=machine.root.spki_sha256.hex()
    )
    return World(
        config=config.encode(),
        other_config=(way_out + config).encode(),
        model=folder / "model.img",
        any_image=parse_policy(policy),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image's files, with a configuration: what a host puts together to boot it."""

    kernel: Path
    initrd: Path
    line: str
    disks: Mapping[str, Path]
    other_config: bytes

    def boot(self) -> Boot:
        return Boot(kernel=self.kernel, initrd=self.initrd, command_line=self.line, disks=self.disks)


def configured(out: Path, world: World, folder: Path) -> Image:
    """The image in `out` with the world's configuration: kernel, initrd and root are the same, disk and command line are new."""
    try:
        measured = parse_command_line((out / "cmdline").read_bytes())
    except OSError as exc:
        raise ImageError(f"{out} is no image: {exc}", "Name a folder that `image build` made") from exc
    except Refused as exc:
        raise ImageError(f"{out / 'cmdline'} is not as the image's own start wants it: {exc}") from exc
    config = folder / "config.img"
    config.write_bytes(padded(world.config))
    line = command_line(Measured(root=measured.root, config=sha256(world.config).digest()), also=EMULATED)
    disks = {"enclave-root": out / "root.img", "enclave-config": config, "enclave-model": world.model}
    files = {"kernel": out / "vmlinuz", "initrd": out / "initrd"}
    return Image(**files, line=line, disks=disks, other_config=world.other_config)
