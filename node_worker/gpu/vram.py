"""How much GPU memory each process holds, as NVIDIA's management library counts it.

An estimate: the library may be missing, may not see into a PID namespace, and counts what the
context itself takes. Who needs a number must do without where there is none.
"""

import contextlib
import importlib
from collections import defaultdict
from typing import Any

Usage = dict[int, dict[str, int]]
"""Bytes by process and GPU."""


def usage() -> Usage:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        return _usage(nvml)
    finally:
        nvml.nvmlShutdown()


def _usage(nvml: Any) -> Usage:
    found: Usage = defaultdict(dict)
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(nvml.NVMLError):  # a GPU that tells nothing leaves the rest
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(device)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(device):
                if process.usedGpuMemory is not None:
                    found[process.pid][uuid] = int(process.usedGpuMemory)
    return dict(found)
