"""Mends narrow floats in Triton's interpreter, for tests only.

It multiplies the bit patterns of bf16 in `dot` (triton-lang/triton#11584: not supported there), truncates fp32 to bf16,
loses the carry when it rounds fp32 to fp8, and multiplies matrices by a BLAS whose last bits depend on a row's place.
bf16 handles hold uint16, fp8 handles uint8.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def to_fp8(values: np.ndarray) -> np.ndarray:
    """e4m3 as the hardware and torch round it."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def install() -> None:
    plain_cast = InterpreterBuilder.cast_impl
    plain_dot = InterpreterBuilder.create_dot
    plain_fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def cast(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.float32 and target == tl.bfloat16:
            return TensorHandle(narrow(src.data), target)
        if source == tl.bfloat16 and target.is_floating():
            wide = TensorHandle(widen(src.data), tl.float32)
            return wide if target == tl.float32 else plain_cast(self, wide, dst_type)
        return plain_cast(self, src, dst_type)

    def integer_to_float(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16:
            return TensorHandle(narrow(src.data.astype(np.float32)), tl.bfloat16)
        return plain_cast(self, src, dst_type)

    def float_to_float(self, src, dst_type, rounding_mode):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.float8e4nv:
            return TensorHandle(to_fp8(src.data), tl.float8e4nv)
        return plain_fp_to_fp(self, src, dst_type, rounding_mode)

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(widen(each.data), tl.float32) for each in (a, b))
        if a.dtype.scalar != tl.float32 or d.dtype.scalar != tl.float32:
            return plain_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
        # BLAS sums in fp32 differ with the place of a row in its matrix, which a matrix instruction's do not.
        exact = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
        return TensorHandle(exact.astype(np.float32), tl.float32)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_ext = cast
    InterpreterBuilder.create_fp_trunc = cast
    InterpreterBuilder.create_si_to_fp = integer_to_float
    InterpreterBuilder.create_ui_to_fp = integer_to_float
    InterpreterBuilder.create_fp_to_fp = float_to_float
    InterpreterBuilder.create_dot = dot
