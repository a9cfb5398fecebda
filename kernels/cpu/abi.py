"""The structures of the C interface, field by field as in the headers of this folder."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum


class Packing(IntEnum):
    """How `LinearABI.panels` holds a weight; mirrors `Packing` in linear.h."""

    BF16 = 0
    INT4 = 1
    INT8 = 2


class LinearABI(ctypes.Structure):
    _fields_ = [
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("n", c_int32),
        ("k", c_int32),
        ("packing", c_int32),
    ]


class AttentionABI(ctypes.Structure):
    _fields_ = [
        ("q", c_void_p),
        ("out", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("q_stride", c_int64),
        ("out_stride", c_int64),
        ("k_block_stride", c_int64),
        ("k_head_stride", c_int64),
        ("v_block_stride", c_int64),
        ("v_head_stride", c_int64),
        ("table_stride", c_int64),
        ("num_requests", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("window", c_int32),
        ("is_float", c_int32),
        ("scale", c_float),
    ]


class NormABI(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("residual", c_void_p),
        ("weight", c_void_p),
        ("out", c_void_p),
        ("total", c_void_p),
        ("outer_stride", c_int64),
        ("inner_stride", c_int64),
        ("outer", c_int32),
        ("inner", c_int32),
        ("dim", c_int32),
        ("is_float", c_int32),
        ("eps", c_float),
    ]


class SiluABI(ctypes.Structure):
    _fields_ = [
        ("gate_up", c_void_p),
        ("out", c_void_p),
        ("stride", c_int64),
        ("rows", c_int32),
        ("dim", c_int32),
        ("is_float", c_int32),
    ]


class RopeABI(ctypes.Structure):
    _fields_ = [
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_out", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("cos_sin", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("k_block_stride", c_int64),
        ("k_head_stride", c_int64),
        ("v_block_stride", c_int64),
        ("v_head_stride", c_int64),
        ("tokens", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("is_float", c_int32),
    ]


class LayerABI(ctypes.Structure):
    _fields_ = [
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", LinearABI),
        ("out", LinearABI),
        ("gate_up", LinearABI),
        ("down", LinearABI),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("window", c_int32),
    ]


class ModelABI(ctypes.Structure):
    _fields_ = [
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("cos_sin", c_void_p),
        ("k_block_stride", c_int64),
        ("k_head_stride", c_int64),
        ("v_block_stride", c_int64),
        ("v_head_stride", c_int64),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("intermediate", c_int32),
        ("block_size", c_int32),
        ("eps", c_float),
        ("scale", c_float),
    ]


class StepABI(ctypes.Structure):
    _fields_ = [
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("hidden", c_void_p),
        ("workspace", c_void_p),
        ("table_stride", c_int64),
        ("num_tokens", c_int32),
        ("num_requests", c_int32),
    ]
