"""The one place that touches `nvidia-ml-py`: opening NVML and turning its errors into ours, with advice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pynvml

from power.device import DeviceError, DeviceLostError, PermissionRefusedError, UnsupportedOperationError

GRANT_CONTROL = (
    "changing clocks or power limits needs root or CAP_SYS_ADMIN: run powerd as a system service "
    "(deploy/systemd/gridserve-powerd.service) or start its container with --cap-add SYS_ADMIN"
)
_lock = threading.Lock()
_users = 0


class NvmlUnavailableError(DeviceError):
    """There is no usable NVML on this machine; the message says why."""


def open_nvml() -> None:
    """Initialise NVML, once for all users of this process. Raises `NvmlUnavailableError`."""
    global _users
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise NvmlUnavailableError("another package named pynvml shadows nvidia-ml-py: pip uninstall pynvml")
    with _lock:
        if _users == 0:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                raise NvmlUnavailableError(_why_unavailable(error)) from error
        _users += 1


def close_nvml() -> None:
    """Undo one `open_nvml`."""
    global _users
    with _lock:
        if _users == 0:
            return
        _users -= 1
        if _users == 0:
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                return


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an NVML function; its errors come back as `DeviceError`s that say what to do."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise translate(error, function.__name__) from error


def read_or_none(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a getter; `None` where the device or driver does not offer it. Still raises `DeviceLostError`."""
    try:
        return call(function, *arguments)
    except DeviceLostError:
        raise
    except DeviceError:
        return None


def translate(error: pynvml.NVMLError, name: str) -> DeviceError:
    code = error.value
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return PermissionRefusedError(f"{name}: permission refused; {GRANT_CONTROL}")
    if code in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        return UnsupportedOperationError(f"{name}: not supported by this GPU, driver or virtual machine")
    if code in (
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    ):
        return DeviceLostError(f"{name}: {error}; check `nvidia-smi` and dmesg for XID errors")
    return DeviceError(f"{name}: {error}")


def _why_unavailable(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "libnvidia-ml.so.1 not found: no NVIDIA driver here, or the container lacks --gpus / the NVIDIA runtime"
    if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is not loaded: modprobe nvidia, or check `nvidia-smi`"
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "no permission to open the NVIDIA device files: check /dev/nvidiactl and the container's device list"
    return f"NVML did not start: {error}"
