"""Evidence of this machine's GPUs, from NVIDIA's management library (NVML). Blocks: a report takes about a second.

One of the edges that touch devices; nothing that decides imports it. NVSwitches are not asked: their reports come from
another library (NSCQ), so machines in protected PCIe mode need `allow_unattested_switches` of their clients.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

from attestation.checks import Check
from attestation.errors import UnavailableError
from attestation.nvidia.devices import GpuDevice, GpuState, dump_list
from attestation.nvidia.evidence import NONCE_BYTES, Arch

_ADVICE = {  # by the names of NVML's errors
    "LIBRARY_NOT_FOUND": "Install the NVIDIA driver's user-space library (libnvidia-ml.so.1) in the image",
    "DRIVER_NOT_LOADED": "Pass the GPU through to this VM and load the driver: modprobe nvidia",
    "NO_PERMISSION": "Let the gateway's user open /dev/nvidiactl and /dev/nvidia*",
    "FUNCTION_NOT_FOUND": "Install driver 550 or newer: this one knows no confidential computing",
    "NOT_SUPPORTED": "Turn the GPU's confidential-computing mode on from the host, then reset the GPU",
    "GPU_IS_LOST": "Reset the GPU from the host; in this mode the driver may attach once per reset",
    "RESET_REQUIRED": "Reset the GPU from the host",
    "LIB_RM_VERSION_MISMATCH": "Install kernel module and user-space library of the same driver version",
}


def collect_gpus(nonce: bytes) -> bytes:
    """NVIDIA's JSON list of every GPU in this machine, each asked with `nonce`, with the driver's state beside it."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a GPU nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    nvml = _load()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        raise _unavailable(nvml, exc, "the NVIDIA driver does not answer") from exc
    try:
        return dump_list(_devices(nvml, nonce))
    except nvml.NVMLError as exc:
        raise _unavailable(nvml, exc, "the NVIDIA driver gave no GPU evidence") from exc
    finally:
        nvml.nvmlShutdown()


def _load() -> Any:
    try:
        import pynvml  # noqa: PLC0415  # an extra: machines without a GPU need not install it
    except ModuleNotFoundError as exc:
        raise UnavailableError(
            Check.GPU_COLLECT,
            "the Python binding of NVML is not installed",
            advice="Install the extra `gpu` (nvidia-ml-py)",
        ) from exc
    return pynvml


def _devices(nvml: Any, nonce: bytes) -> list[GpuDevice]:
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise UnavailableError(
            Check.GPU_COLLECT, "the NVIDIA driver sees no GPU", advice="Pass a GPU through to this VM"
        )
    state = _state(nvml)
    return [_device(nvml, nvml.nvmlDeviceGetHandleByIndex(index), nonce, state) for index in range(count)]


def _state(nvml: Any) -> GpuState:
    """Confidential computing as the driver runs it; protected PCIe counts as on, and is named in the GPU's own report."""
    settings = nvml.c_nvmlSystemConfComputeSettings_v1_t()
    if error := nvml.nvmlSystemGetConfComputeSettings(byref(settings)):
        raise nvml.NVMLError(error)
    protected = settings.multiGpuMode == nvml.NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE
    ready = nvml.nvmlSystemGetConfComputeGpusReadyState()
    return GpuState(
        confidential=settings.ccFeature == nvml.NVML_CC_SYSTEM_FEATURE_ENABLED or protected,
        devtools=settings.devToolsMode != nvml.NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF,
        ready=ready == nvml.NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE,
    )


def _device(nvml: Any, handle: Any, nonce: bytes, state: GpuState) -> GpuDevice:
    known = {nvml.NVML_DEVICE_ARCH_HOPPER: Arch.HOPPER, nvml.NVML_DEVICE_ARCH_BLACKWELL: Arch.BLACKWELL}
    number = nvml.nvmlDeviceGetArchitecture(handle)
    if number not in known:
        raise UnavailableError(
            Check.GPU_COLLECT,
            f"a GPU has NVML architecture {number}; evidence is understood of {', '.join(known.values())}",
        )
    report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
    certificate = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
    return GpuDevice(
        report=bytes(report.attestationReport[: report.attestationReportSize]),
        chain=bytes(certificate.attestationCertChain[: certificate.attestationCertChainSize]),
        arch=known[number],
        nonce=nonce,
        state=state,
    )


def _unavailable(nvml: Any, error: Any, what: str) -> UnavailableError:
    advice = next(
        (text for name, text in _ADVICE.items() if getattr(nvml, f"NVML_ERROR_{name}") == error.value), ""
    )
    return UnavailableError(Check.GPU_COLLECT, f"{what}: {error}", advice=advice)
