// Row-wise operations around the linears and attention: norms, SiLU, rotary embedding, cache writes.
#pragma once

#include "simd.h"

namespace gs {

// out = x / rms(x) * weight, in fp32 inside; dim is a multiple of 16.
template <class In, class Weight, class Out>
inline void rms_norm_row(const In* x, const Weight* weight, Out* out, int dim, float eps) {
  f32x16 squares = {};
  for (int i = 0; i < dim; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  const f32x16 inverse = broadcast(1.0f / __builtin_sqrtf(sum(squares) / float(dim) + eps));
  for (int i = 0; i < dim; i += kLanes) store(out + i, load(x + i) * inverse * load(weight + i));
}

// NeoX rotation of one head; cos_sin is one row of the table: D / 2 cosines, then D / 2 sines. D is a multiple of 32.
template <class In, class Out>
inline void rotate_row(const In* x, const float* cos_sin, Out* out, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const f32x16 low = load(x + i), high = load(x + half + i);
    const f32x16 cosine = load(cos_sin + i), sine = load(cos_sin + half + i);
    store(out + i, fma(low, cosine, -(high * sine)));
    store(out + half + i, fma(high, cosine, low * sine));
  }
}

template <class In, class Out>
inline void copy_row(const In* x, Out* out, int dim) {
  for (int i = 0; i < dim; i += kLanes) store(out + i, load(x + i));
}

// Mirror kernels/cpu/abi.py. Strides count elements; `is_float`: fp32 tensors, else bf16.
struct Norm {
  const void* x;
  const void* residual;  // null: plain norm
  const void* weight;
  void* out;
  void* total;
  int64_t outer_stride, inner_stride;  // of x; the others are contiguous
  int32_t outer, inner, dim;
  int32_t is_float;
  float eps;
};

struct Silu {
  const void* gate_up;
  void* out;
  int64_t stride;
  int32_t rows, dim;
  int32_t is_float;
};

struct Rope {
  const void *q, *k, *v;
  void *q_out, *k_cache, *v_cache;
  const float* cos_sin;
  const int64_t* positions;
  const int64_t* slots;
  int64_t q_stride, k_stride, v_stride;
  int64_t k_block_stride, k_head_stride;
  int64_t v_block_stride, v_head_stride;
  int32_t tokens, num_heads, num_kv_heads, head_dim, block_size;
  int32_t is_float;
};

void norm(const Norm& norm);
void silu_and_mul(const Silu& silu);
void rope_and_write_kv(const Rope& rope);

}  // namespace gs
