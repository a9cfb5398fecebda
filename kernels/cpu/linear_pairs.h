// Linears where the CPU multiplies pairs of bf16 (avx512_bf16): codes expand to bf16 weights.
#pragma once

#include "linear_codes.h"

namespace gs {

constexpr int kDirectRows = 4;  // up to here, codes are expanded in registers

inline int direct_rows() { return kDirectRows; }

template <int Rows>
void multiply_bf16(const Linear& linear, int panel, const bf16* expanded, const bf16* x, long stride, float* out,
                   const char* ahead) {
  f32x16 acc[Rows][kPanelVectors] = {};
  // A few rows of bf16 weights run at the speed of memory, where the hardware prefetcher does as well.
  multiply_pairs<Rows, kPanelVectors, (Rows > kDirectRows)>(x, stride, expanded, linear.k / 2, acc, ahead);
  store_tile<Rows>(linear, panel, acc, out);
}

template <int Rows, class Expander>
void multiply_blocks(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  const char* block = linear.panel(panel);
  f32x16 acc[Rows][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += kBlock)
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; v++, block += Expander::kBytes) {
      const Expander expander(block);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const u32x16 w = expander.pairs(i, j);
#pragma GCC unroll 16
          for (int r = 0; r < Rows; r++)
            acc[r][v] = dot_pairs(acc[r][v], broadcast_pair(x + r * stride + k + 8 * i + 2 * j), w);
        }
    }
  store_tile<Rows>(linear, panel, acc, out);
}

template <int Rows>
void multiply_codes(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  if (linear.packing == kInt4)
    multiply_blocks<Rows, Int4Expander>(linear, panel, x, stride, out);
  else
    multiply_blocks<Rows, Int8Expander>(linear, panel, x, stride, out);
}

template <int Rows>
void multiply_rows(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, float* out,
                   const char* ahead) {
  if constexpr (Rows <= kDirectRows)
    if (!expanded) return multiply_codes<Rows>(linear, panel, x, stride, out);
  multiply_bf16<Rows>(linear, panel, static_cast<const bf16*>(expanded), x, stride, out, ahead);
}

inline void multiply(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                     float* out, int next, int first_row) {
  const char* ahead = lines_ahead(linear, next, first_row);
  with_rows<kTileRows>(rows, [&](auto count) {
    multiply_rows<count.value>(linear, panel, expanded, x, stride, out, ahead);
  });
}

}  // namespace gs
