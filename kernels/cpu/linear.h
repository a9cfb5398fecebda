// Linear layers `[T, K] x [N, K]^T` over weights packed in panels of 48 outputs.
//
// One accumulator per output runs over K from the first to the last pair, whatever the number of rows: a row's result
// is the same bits at every batch size. Where the CPU multiplies pairs of bf16, the 4-bit and 8-bit forms expand to the
// very bf16 weights the bf16 form stores, so all forms give the same bits too; elsewhere they expand to fp32, unrounded.
#pragma once

#include <type_traits>

#include "simd.h"

namespace gs {

constexpr int kPanelVectors = 3;
constexpr int kPanel = kPanelVectors * kLanes;  // outputs of one panel
constexpr int kTileRows = 8;                    // rows computed at once: 8 x 3 accumulators in 32 registers
#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
constexpr bool kBf16Pairs = true;
constexpr int kGroupRows = 512;  // rows that share a part of a panel while it is in the first-level cache
#elif defined(__AVX512BF16__)
constexpr bool kBf16Pairs = true;  // an instruction multiplies pairs of bf16
constexpr int kGroupRows = kTileRows;
#else
constexpr bool kBf16Pairs = false;
constexpr int kGroupRows = 64;  // rows that share a part of a panel while it is in the first-level cache
#endif
constexpr int kBlock = 32;                      // inputs that share a scale
constexpr int kInt4BlockBytes = kLanes * 2 * 2 + kLanes * kBlock / 2;  // of 16 outputs
constexpr int kInt8BlockBytes = kLanes * 2 + kLanes * kBlock;

enum Packing : int32_t { kBf16 = 0, kInt4 = 1, kInt8 = 2 };

// Mirrors kernels/cpu/abi.py.
struct Linear {
  const void* panels;
  const float* bias;  // null, or padded to whole panels
  int32_t n, k;
  int32_t packing;

  int num_panels() const { return (n + kPanel - 1) / kPanel; }
  long panel_bytes() const {
    if (packing == kBf16) return long(k) * kPanel * 2;
    return long(k / kBlock) * kPanelVectors * (packing == kInt4 ? kInt4BlockBytes : kInt8BlockBytes);
  }
  const char* panel(int index) const { return static_cast<const char*>(panels) + index * panel_bytes(); }
};

// acc[r][v] += x[r][0..2*pairs) . panel, a panel laid out as [pair][vector][lane][2]. With `Fetch`, one cache line of
// `ahead` is fetched for each pair meanwhile.
template <int Rows, int Vectors, bool Fetch = false>
inline void multiply_pairs(const bf16* x, long stride, const bf16* panel, int pairs, f32x16 (&acc)[Rows][Vectors],
                           const char* ahead = nullptr) {
  for (int p = 0; p < pairs; p++) {
    u32x16 w[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) w[v] = load_as<u32x16>(panel + (long(p) * Vectors + v) * 2 * kLanes);
    if constexpr (Fetch) __builtin_prefetch(ahead + p * 64l, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) {
      const u32x16 pair = broadcast_pair(x + r * stride + 2 * p);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; v++) acc[r][v] = dot_pairs(acc[r][v], pair, w[v]);
    }
  }
}

// Calls body(std::integral_constant<int, rows>), 1 <= rows <= Most <= 8.
template <int Most, class Body>
inline void with_rows(int rows, const Body& body) {
  if constexpr (Most > 1)
    if (rows < Most) return with_rows<Most - 1>(rows, body);
  body(std::integral_constant<int, Most>{});
}

bool blocks_rounded();  // whether the 4-bit and 8-bit forms expand to bf16, else to fp32

void pack_bf16(const bf16* weight, int n, int k, void* panels);
// codes [N, K] 0..15; scales and minimums [N, K / 32] as IEEE half bits.
void pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* minimums, int n, int k, void* panels);
// codes [N, K] signed; scales as above.
void pack_int8(const int8_t* codes, const uint16_t* scales, int n, int k, void* panels);

// A panel as `multiply_group` reads it: the panel itself, or its codes expanded into scratch of this thread (two slots);
// null where `multiply_group` expands as it goes, which is faster for few rows.
const void* expanded_panel(const Linear& linear, int panel, int rows, int slot);

// The part of panel `next` to fetch while the tile that begins at `row` is computed: a cache line for each pair.
inline const char* lines_ahead(const Linear& linear, int next, int row) {
  const long offset = long(row / kTileRows) * 64 * (linear.k / 2);
  return next < linear.num_panels() && offset < linear.panel_bytes() ? linear.panel(next) + offset : linear.panel(0);
}

// Up to kGroupRows rows of one panel, bias added, into out[row * kPanel]. `expanded`: from `expanded_panel`.
// `first_row`: the place of these rows in the batch; meanwhile its part of the panel `next` comes to the cache.
void multiply_group(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                    float* out, int next, int first_row);

// Calls sink(first_row, count, sums) for each group of rows of one panel.
template <class Sink>
inline void multiply_panel(const Linear& linear, int panel, int next, const bf16* x, long stride, int rows,
                           const Sink& sink) {
  alignas(64) float sums[kGroupRows * kPanel];
  const void* expanded = expanded_panel(linear, panel, rows, 0);
  for (int row = 0; row < rows; row += kGroupRows) {
    const int count = rows - row < kGroupRows ? rows - row : kGroupRows;
    multiply_group(linear, panel, expanded, x + row * stride, stride, count, sums, next, row);
    sink(row, count, sums);
  }
}

// y[T, N] = x W^T + b on the pool. `y_is_float`: y is fp32, else bf16.
void linear(const Linear& linear, const bf16* x, long stride, int rows, void* y, bool y_is_float);

}  // namespace gs
