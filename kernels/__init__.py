"""Triton and CPU kernels, each beside a plain-torch definition of the same function."""
