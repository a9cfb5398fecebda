"""Triton and CPU kernels, each beside a plain-torch definition of the same function."""

from kernels.cpu.library import CpuStatus, cpu_status

__all__ = ["CpuStatus", "cpu_status"]
