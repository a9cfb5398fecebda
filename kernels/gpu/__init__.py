"""Triton kernels for NVIDIA GPUs (sm_80 and later), one family a file; `ops` has the functions the engine calls."""
