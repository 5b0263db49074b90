"""How many processes and machines run the model: what the statement says of it, and the commands that start them.

A child of the gateway may use several GPUs of one machine. Replicas behind vLLM's router and clusters of several machines
are started by somebody else (`engine` in the settings); the commands here have the same hardened flags as a child.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from attestation.binding import Topology
from enclave_server.engine.address import parse_address
from enclave_server.engine.flags import command, environment
from enclave_server.settings import Settings

_PRIVATE = Path(
    "/run/engine"
)  # where the printed commands let the engine write, unless `runtime_dir` says otherwise
_OWN = ("VLLM_", "HF_", "TRANSFORMERS_", "DO_NOT_TRACK", "HOME", "TMPDIR", "XDG_")


def topology(settings: Settings) -> Topology | None:
    """What the statement says; nothing of one child with one worker."""
    found = Topology(
        external=settings.engine is not None,
        nodes=settings.engine_nodes,
        replicas=settings.engine_replicas,
        data_parallel=settings.engine_data_parallel,
        tensor_parallel=settings.engine_tensor_parallel,
        pipeline_parallel=settings.engine_pipeline_parallel,
    )
    return None if found == Topology() else found


def commands(settings: Settings) -> Iterator[str]:
    """Shell lines, with comments, that start the engine of these settings."""
    private = settings.runtime_dir or _PRIVATE
    if settings.engine is None:
        yield "# The gateway starts this itself, in namespaces of its own:"
        yield shlex.join(command(settings, f"--uds={private}/vllm.sock"))
        return
    yield shlex.join(["mkdir", "-m", "700", "-p", str(private)])
    own = environment(settings, private)
    for name, value in own.items():
        if name.startswith(_OWN) or name in settings.engine_environment:
            yield f"export {name}={shlex.quote(value)}"
    if settings.engine_nodes > 1:
        yield from _cluster(settings.engine_nodes, private)
    address = parse_address(settings.engine)
    if isinstance(address, Path):
        yield shlex.join(
            ["rm", "-f", str(address)]
        )  # an engine that was killed leaves it, and none can start on it
        yield shlex.join(command(settings, f"--uds={address}"))
        return
    host, port = address
    if settings.engine_replicas == 1:
        yield shlex.join(command(settings, f"--host={host}", f"--port={port}"))
        return
    yield from _replicas(settings, host, port)


def _cluster(nodes: int, home: Path) -> Iterator[str]:
    """vLLM on Ray. Nothing between its machines is encrypted by them, and of vLLM's own connections nothing is authenticated."""
    yield "# HEAD is this machine's address in a network that only the cluster's machines are in, and that encrypts (WireGuard);"
    yield "# each machine has to be attested by itself: this gateway's evidence speaks of its own machine alone."
    yield 'export VLLM_HOST_IP="$HEAD"'
    yield "export RAY_AUTH_MODE=token"
    yield "ray get-auth-token --generate > /dev/null  # a Ray that has no tokens ends here, for it would obey everybody"
    yield 'ray start --head --node-ip-address="$HEAD" --port=6379 --disable-usage-stats'
    yield f"# on each of the {nodes - 1} other machines, with OWN as its address and {home}/.ray/auth_token as ~/.ray/auth_token:"
    yield (
        '# RAY_AUTH_MODE=token VLLM_HOST_IP="$OWN" '
        'ray start --address="$HEAD:6379" --node-ip-address="$OWN" --disable-usage-stats'
    )


def _replicas(settings: Settings, host: str, port: int) -> Iterator[str]:
    """One vLLM for each group of GPUs, and vLLM's router before them at the engine's own address."""
    size = settings.engine_tensor_parallel * settings.engine_pipeline_parallel * settings.engine_data_parallel
    urls = []
    for number in range(settings.engine_replicas):
        gpus = ",".join(str(gpu) for gpu in range(number * size, (number + 1) * size))
        there = port + 1 + number
        urls.append(f"http://{host}:{there}")
        line = shlex.join(command(settings, f"--host={host}", f"--port={there}"))
        said = (
            f'echo "the replica on port {there} ended with status ${{ended:-0}}" >&2'  # a shell tells nobody
        )
        yield f"{{ CUDA_VISIBLE_DEVICES={gpus} {line} || ended=$?; {said}; }} &"
    router = [
        "vllm-router",
        "--worker-urls",
        *urls,
        "--policy",
        "cache_aware",
        # By default it takes minutes to see that a replica is gone, or back.
        "--health-check-interval-secs=2",
        "--health-failure-threshold=2",
        "--host",
        host,
        "--port",
        str(port),
    ]
    yield shlex.join(router)
