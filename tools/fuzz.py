"""Feed made-up bytes to everything that reads bytes from strangers: each gives a value or MalformedError, nothing else.

    python -m tools.fuzz [--seconds 60] [--only TARGET] [--engine atheris|hypothesis]

Coverage-guided with atheris where it is installed, by hypothesis where it is not; which of the two is said. Seeds come from
the simulators; what was found interesting is kept in .cache/fuzz, so that the next run goes on from there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from gzip import compress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

TARGETS = (
    "attestation.tdx:parse_quote",
    "attestation.snp:parse_report",
    "attestation.nitro:parse_document",
    "attestation.vtpm:parse_evidence",
    "attestation.vtpm:parse_hcl_report",
    "attestation.vtpm:parse_quote",
    "attestation.nvidia.evidence:parse_evidence",
    "attestation.nvidia.devices:parse_list",
    "attestation.nvidia.ocsp:parse_answer",
    "attestation.measure.eventlog:parse_log",
    "attestation.measure.dstack:parse_dstack_log",
    "attestation.evidence:parse_evidence",
    "attestation.binding:parse_statement",
    "attestation.bundle:parse_bundle",
    "attestation.disclosure:parse_disclosure",
    "attestation.parts:messages_of",
    "attestation.parts:texts_of",
    "attestation.references:read_references",
    "attestation.tlog.note:parse_note",
    "attestation.tlog.proof:parse_proof",
    "attestation.tlog.tiles:parse_entries",
    "attestation.sealed:parse_envelope",
    "attestation.sealed:parse_message",
    "attestation.provisioning:parse_sealed_secrets",
    "client_sdk.describe:describe",
    "client_sdk.files:decode",
    "client_sdk.foreign.formats:recognise",
)
CORPUS = Path(".cache/fuzz")
MAX_BYTES = 32 * 1024
Read = Callable[[bytes], object]


def load(target: str) -> Read:
    """The function that a target names, made to swallow the one error it may raise."""
    module, _, name = target.partition(":")
    read: Read = getattr(import_module(module), name)
    malformed: type[Exception] = import_module("attestation.errors").MalformedError

    def run(data: bytes) -> None:
        with suppress(malformed):
            read(data)

    return run


def seeds() -> Iterator[bytes]:
    """Good evidence of each kind: what is mutated into bad evidence."""
    from datetime import UTC, datetime  # noqa: PLC0415  # after atheris has instrumented the rest

    from attestation.collateral import Collateral  # noqa: PLC0415
    from attestation.evidence import Evidence, TdxEvidence, dump_evidence  # noqa: PLC0415
    from attestation.simulator import SimulatedTdx  # noqa: PLC0415
    from attestation.simulator.nitro import SimulatedNitro  # noqa: PLC0415
    from attestation.simulator.nvidia import SimulatedNvidia  # noqa: PLC0415
    from attestation.simulator.vtpm import make_hcl_report, make_quote  # noqa: PLC0415

    now, machine, gpus = datetime.now(UTC), SimulatedTdx.create(), SimulatedNvidia.create()
    quote, collateral = machine.quote(bytes(64)), machine.collateral(now)
    (device,), stapled = gpus.devices(bytes(32)), gpus.collateral(now)
    document = Evidence(statement=b"{}", cpu=TdxEvidence(quote), collateral=Collateral(intel=collateral))
    yield from (quote, machine.quote(bytes(64), version=5), quote.hex().encode(), collateral.to_json())
    yield from (b"\x02" + bytes(1183), SimulatedNitro().document(now), dump_evidence(document))
    yield from (device.report, gpus.evidence(bytes(32)), stapled.ocsp[0], stapled.rims[0])
    yield from (make_quote(bytes(32), (bytes(32),) * 24), make_hcl_report(bytes(1184), b'{"keys": []}'))
    yield b'[{"imr": 3, "event_type": 134217729, "digest": "", "event": "app-id", "event_payload": "00"}]'
    yield (
        b'{"name": "n", "epoch": 1, "issued": 0, "expires": 1, "releases": [{"id": "i", "snp": ["%s"]}]}'
        % (b"00" * 48)
    )
    yield b'{"signing_address": "%s", "intel_quote": "%s"}' % (b"00" * 20, quote.hex().encode())
    body = b64encode(compress(quote))
    yield b'{"format": "https://tinfoil.sh/predicate/tdx-guest/v2", "body": "%s"}' % body


def with_atheris(target: str, seconds: int) -> None:
    """One target in this process; ends it, as libFuzzer does."""
    import atheris  # noqa: PLC0415  # may be absent

    with atheris.instrument_imports(include=["attestation", "client_sdk"]):
        read = load(target)
    folder = CORPUS / target.replace(":", ".")
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-artifact_prefix={folder}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], read)
    atheris.Fuzz()


def with_hypothesis(target: str, seconds: int) -> None:
    """The same property without coverage: random bytes, and seeds with some bytes replaced."""
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415  # not needed beside atheris
    from hypothesis import strategies as st  # noqa: PLC0415

    read, good, end = load(target), list(seeds()), monotonic() + seconds
    edits = st.lists(st.tuples(st.integers(0, MAX_BYTES), st.integers(0, 255)), max_size=8)

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.none(), st.sampled_from(good)), edits, st.binary(max_size=2048))
    def run(seed: bytes | None, changes: list[tuple[int, int]], tail: bytes) -> None:
        data = bytearray(seed or b"")
        for position, value in changes:
            if data:
                data[position % len(data)] = value
        read(bytes(data) if seed is not None and len(tail) % 4 else bytes(data) + tail)

    while monotonic() < end:
        run()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--engine", choices=("atheris", "hypothesis"))
    asked = parser.parse_args()
    engine = asked.engine or ("atheris" if find_spec("atheris") else "hypothesis")
    targets = (asked.only,) if asked.only else TARGETS
    each = max(1, asked.seconds // len(targets))
    if asked.only:
        (with_atheris if engine == "atheris" else with_hypothesis)(asked.only, each)
        return 0
    why = "" if engine == "atheris" else " (atheris is not installed)"
    print(f"fuzzing {len(targets)} readers with {engine}{why}, {each} s each", flush=True)
    failed = [target for target in targets if _run_alone(target, engine, each)]
    print(f"{len(targets) - len(failed)} passed, {len(failed)} failed", *failed)
    return len(failed)


def _run_alone(target: str, engine: str, seconds: int) -> int:
    """A target in a process of its own: libFuzzer ends the one it runs in. Its output is shown when it fails."""
    command = [
        sys.executable,
        "-m",
        "tools.fuzz",
        "--only",
        target,
        "--engine",
        engine,
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(  # noqa: S603  # this very program
        command, capture_output=True, text=True, check=False
    )
    print(f"  {target:45} {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    if done.returncode:
        print(done.stdout[-4000:] + done.stderr[-4000:])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
