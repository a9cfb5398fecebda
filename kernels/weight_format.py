"""The weight formats by name, apart from the code that packs them: reading a configuration loads no torch."""

from __future__ import annotations

import enum


class WeightFormat(enum.StrEnum):
    """How weights are held: `FP32` is the reference; `BF16` the default.

    `INT4` keeps the 4- and 8-bit blocks of a file. `INT8` rounds the matrices of any file to 8 bits, with one scale for
    each output channel.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
