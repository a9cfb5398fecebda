#include "elementwise.h"

#include "pool.h"

namespace gs {
namespace {

constexpr long kSerialElements = 1 << 15;  // below this, waking the pool costs more than it saves
constexpr int kRowsPerTask = 4;

template <class Body>
void for_rows(int rows, long elements, const Body& body) {
  if (elements < kSerialElements) {
    for (int row = 0; row < rows; row++) body(row);
    return;
  }
  parallel(threads(), [&](Team& team) {
    team.share((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task) {
      for (int row = task * kRowsPerTask; row < rows && row < (task + 1) * kRowsPerTask; row++) body(row);
    });
  });
}

template <class T>
void norm_typed(const Norm& n) {
  const int rows = n.outer * n.inner;
  for_rows(rows, long(rows) * n.dim, [&](int row) {
    const T* x = static_cast<const T*>(n.x) + row / n.inner * n.outer_stride + row % n.inner * n.inner_stride;
    if (n.residual) {
      const T* residual = static_cast<const T*>(n.residual) + long(row) * n.dim;
      T* total = static_cast<T*>(n.total) + long(row) * n.dim;
      for (int i = 0; i < n.dim; i += kLanes) store(total + i, load(x + i) + load(residual + i));
      x = total;
    }
    rms_norm_row(x, static_cast<const T*>(n.weight), static_cast<T*>(n.out) + long(row) * n.dim, n.dim, n.eps);
  });
}

template <class T>
void silu_typed(const Silu& s) {
  for_rows(s.rows, long(s.rows) * s.dim, [&](int row) {
    const T* gate = static_cast<const T*>(s.gate_up) + row * s.stride;
    T* out = static_cast<T*>(s.out) + long(row) * s.dim;
    for (int i = 0; i < s.dim; i += kLanes) store(out + i, silu(load(gate + i)) * load(gate + s.dim + i));
  });
}

template <class T>
void rope_typed(const Rope& r) {
  const long width = long(r.num_heads + 2 * r.num_kv_heads) * r.head_dim;
  for_rows(r.tokens, r.tokens * width, [&](int token) {
    const int D = r.head_dim;
    const float* cos_sin = r.cos_sin + r.positions[token] * D;
    const T* q = static_cast<const T*>(r.q) + token * r.q_stride;
    T* q_out = static_cast<T*>(r.q_out) + long(token) * r.num_heads * D;
    for (int head = 0; head < r.num_heads; head++) rotate_row(q + head * D, cos_sin, q_out + head * D, D);
    const int64_t slot = r.slots[token];
    if (slot < 0) return;
    const int64_t block = slot / r.block_size, offset = slot % r.block_size;
    for (int head = 0; head < r.num_kv_heads; head++) {
      T* k_to = static_cast<T*>(r.k_cache) + block * r.k_block_stride + head * r.k_head_stride + offset * D;
      T* v_to = static_cast<T*>(r.v_cache) + block * r.v_block_stride + head * r.v_head_stride + offset * D;
      rotate_row(static_cast<const T*>(r.k) + token * r.k_stride + head * D, cos_sin, k_to, D);
      std::memcpy(v_to, static_cast<const T*>(r.v) + token * r.v_stride + head * D, D * sizeof(T));
    }
  });
}

}  // namespace

void norm(const Norm& n) { n.is_float ? norm_typed<float>(n) : norm_typed<bf16>(n); }
void silu_and_mul(const Silu& s) { s.is_float ? silu_typed<float>(s) : silu_typed<bf16>(s); }
void rope_and_write_kv(const Rope& r) { r.is_float ? rope_typed<float>(r) : rope_typed<bf16>(r); }

}  // namespace gs
