"""How many threads compute, and how torch's own threads wait for work.

The compiled kernels bring their own thread pool, whose waits spin for about 40 us and then sleep. torch's OpenMP
workers spin for milliseconds after each operation by default and would take the cores from that pool, so the engine
process makes them wait passively; where torch computes everything they should spin instead.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """`GRIDSERVE_THREADS` or `OMP_NUM_THREADS` where set, else the physical cores this process may use.

    Affinity and the cgroup's CPU quota count; hardware threads of one core count once.

    Raises:
        ValueError: a variable is not a positive integer.
    """
    for name in ("GRIDSERVE_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0]
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"{name}={text!r}: give a number of threads, 1 or more")
            return int(text)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) or str(cpu) for cpu in cpus}
    quota = _cgroup_quota_cpus()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def configure_environment(native: bool = True) -> None:
    """Call before torch is imported: sets the OpenMP variables that the user has not set.

    `native`: the compiled kernels will be used, torch only for small operations.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE" if native else "ACTIVE")


def set_threads(threads: int) -> None:
    """Call at any time: the number of threads of torch and of the compiled kernels.

    Raises:
        ValueError: `threads` is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}: give 1 or more")
    import torch

    from kernels.cpu.library import native_library

    torch.set_num_threads(threads)
    library = native_library()
    if library is not None:
        library.set_threads(threads)


def _siblings(cpu: int) -> str | None:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text("utf-8").strip()
    except OSError:
        return None


def _cgroup_quota_cpus() -> float | None:
    """CPUs' worth of time the cgroup (v2) may use; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()[:2]
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        return None
