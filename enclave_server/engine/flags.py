"""How vLLM is started: the hardened flags and environment, and what an operator may add to them.

The reasons stand beside each line; what a client should know of it goes to the statement as `engine.flags`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclave_server.settings import Settings

MODULE = "vllm.entrypoints.openai.api_server"

# Nothing here loads code, opens a listener, logs, or changes the model after its files were hashed.
ALLOWED_FLAGS = frozenset(
    {
        "--block-size",
        "--enable-auto-tool-choice",
        "--enable-chunked-prefill",
        "--enable-expert-parallel",
        "--enable-prefix-caching",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--limit-mm-per-prompt",
        "--max-logprobs",
        "--max-num-batched-tokens",
        "--mm-processor-cache-gb",
        "--no-enable-chunked-prefill",
        "--no-enable-prefix-caching",
        "--quantization",
        "--reasoning-parser",
        "--runner",
        "--stream-interval",
        "--structured-outputs-config.backend",  # this member alone: another one loads code
        "--swap-space",
        "--tool-call-parser",
        "--tool-strict-level",
    }
)
# What a GPU or CPU machine has to say to its libraries. Everything else the gateway sets itself.
ALLOWED_VARIABLES = frozenset(
    {
        "CUDA_HOME",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "NCCL_DEBUG",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "VLLM_ATTENTION_BACKEND",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_WORKER_MULTIPROC_METHOD",
    }
)


def answer_flags(settings: Settings) -> tuple[str, ...]:
    """The flags that can change an answer, as the statement lists them."""
    flags = [
        "--load-format=safetensors",  # no pickle is ever opened
        f"--dtype={settings.engine_dtype}",
        "--generation-config=vllm",  # defaults of vLLM, not of a file beside the weights
        "--seed=0",
        "--no-trust-remote-code",
        "--logprobs-mode=raw_logprobs",
        f"--max-num-seqs={settings.engine_max_num_seqs}",
    ]
    if settings.engine_max_model_len is not None:
        flags.append(f"--max-model-len={settings.engine_max_model_len}")
    if settings.engine_kv_cache_memory is not None:
        flags.append(f"--kv-cache-memory-bytes={settings.engine_kv_cache_memory}")
    if settings.engine_eager:
        flags.append("--enforce-eager")
    for name, size in (
        ("tensor", settings.engine_tensor_parallel),
        ("pipeline", settings.engine_pipeline_parallel),
        ("data", settings.engine_data_parallel),
    ):
        if size > 1:
            flags.append(f"--{name}-parallel-size={size}")
    if settings.engine_nodes > 1:
        flags.append("--distributed-executor-backend=ray")
    return (*flags, *settings.engine_flags)


def command(settings: Settings, *listen: str) -> list[str]:
    """What is executed, with the flags that say where it listens. `-I` keeps the working directory and the user's packages out of the import path."""
    python = settings.engine_python
    return [
        str(python.absolute()) if python is not None else "python3",
        "-I",
        "-m",
        MODULE,
        f"--model={settings.model_dir.resolve()}",
        f"--served-model-name={settings.model_name}",
        *listen,
        *answer_flags(settings),
        "--no-enable-log-requests",  # prompts stay out of its log
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
        "--enable-prompt-tokens-details",
    ]


def environment(settings: Settings, private: Path) -> dict[str, str]:
    """The whole environment: nothing of the gateway's own is handed down."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(private),
        "TMPDIR": str(private),
        "XDG_CACHE_HOME": str(private / "cache"),
        "XDG_CONFIG_HOME": str(private / "config"),
        "HF_HOME": str(private / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(private / "cache"),  # it may hold code: always a fresh one
        "VLLM_RPC_BASE_PATH": str(private),  # its inner sockets; the default is /tmp
        "VLLM_PLUGINS": "",  # load none, whatever is installed
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_MAX_N_SEQUENCES": "8",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        **settings.engine_environment,
    }


def check_extra_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """The operator's own flags, each as one `--name` or `--name=value`."""
    refused = sorted(flag for flag in flags if flag.partition("=")[0] not in ALLOWED_FLAGS)
    if refused:
        raise ValueError(f"engine flags {refused} are not among those allowed: {sorted(ALLOWED_FLAGS)}")
    return tuple(flags)


def check_environment(variables: Mapping[str, str]) -> dict[str, str]:
    refused = sorted(set(variables) - ALLOWED_VARIABLES)
    if refused:
        raise ValueError(
            f"engine variables {refused} are not among those allowed: {sorted(ALLOWED_VARIABLES)}"
        )
    return dict(variables)
