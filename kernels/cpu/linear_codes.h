// 4-bit and 8-bit codes expanded to pairs of bf16, for CPUs with avx512_bf16.
#pragma once

#include "linear.h"

namespace gs {

using Expanded = u32x16;

template <int Rows>
void store_tile(const Linear& linear, int panel, const f32x16 (&acc)[Rows][kPanelVectors], float* out) {
  for (int v = 0; v < kPanelVectors; v++) {
    const f32x16 bias = linear.bias ? load(linear.bias + long(panel) * kPanel + v * kLanes) : f32x16{};
    for (int r = 0; r < Rows; r++) store(out + r * kPanel + v * kLanes, linear.bias ? acc[r][v] + bias : acc[r][v]);
  }
}

inline __m512i twice_low() { return _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0); }
inline __m512i twice_high() { return _mm512_set_epi32(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8); }

// A block of 32 inputs x 16 outputs: 16 half scales, 16 half minimums, then 4 vectors of 4-bit codes. Nibble n of
// 32-bit lane l in vector i is the code of input 8i + 2(n / 2) + l % 2 and output l / 2 + 8 (n % 2): expanding the
// nibbles 2j and 2j + 1 and narrowing both gives one vector of pairs as `dot_pairs` reads it.
class Int4Expander {
 public:
  static constexpr int kBytes = kInt4BlockBytes;

  explicit Int4Expander(const char* block) : codes_(block + 64) {
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
    const __m512 minimum = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32)));
    scale_low_ = _mm512_permutexvar_ps(twice_low(), scale);
    scale_high_ = _mm512_permutexvar_ps(twice_high(), scale);
    minimum_low_ = _mm512_permutexvar_ps(twice_low(), minimum);
    minimum_high_ = _mm512_permutexvar_ps(twice_high(), minimum);
  }

  // The weights of inputs 8i + 2j and 8i + 2j + 1 for the sixteen outputs, rounded to bf16.
  u32x16 pairs(int i, int j) const {
    const __m512 values = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i packed = _mm512_loadu_si512(codes_ + 64 * i);
    const __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(packed, 8 * j), values);
    const __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(packed, 8 * j + 4), values);
    return (u32x16)_mm512_cvtne2ps_pbh(_mm512_fmadd_ps(high, scale_high_, minimum_high_),
                                      _mm512_fmadd_ps(low, scale_low_, minimum_low_));
  }

 private:
  const char* codes_;
  __m512 scale_low_, scale_high_, minimum_low_, minimum_high_;
};

// A block of 32 inputs x 16 outputs: 16 half scales, then for each pair of inputs two vectors of 16 signed codes, lane l
// holding input l % 2 of output l / 2, and of output l / 2 + 8.
class Int8Expander {
 public:
  static constexpr int kBytes = kInt8BlockBytes;

  explicit Int8Expander(const char* block) : codes_(block + 32) {
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
    scale_low_ = _mm512_permutexvar_ps(twice_low(), scale);
    scale_high_ = _mm512_permutexvar_ps(twice_high(), scale);
  }

  u32x16 pairs(int i, int j) const {
    const char* codes = codes_ + 32 * (4 * i + j);
    return (u32x16)_mm512_cvtne2ps_pbh(_mm512_mul_ps(widen(codes + 16), scale_high_),
                                      _mm512_mul_ps(widen(codes), scale_low_));
  }

 private:
  static __m512 widen(const char* codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
  }

  const char* codes_;
  __m512 scale_low_, scale_high_;
};

// One block of inputs for a whole panel, as pairs; returns the next block.
template <class Expander>
inline const char* expand_step(const char* block, u32x16* to) {
  for (int v = 0; v < kPanelVectors; v++, block += Expander::kBytes) {
    const Expander expander(block);
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) to[(4 * i + j) * kPanelVectors + v] = expander.pairs(i, j);
  }
  return block;
}

template <class Expander>
void expand_blocks(const Linear& linear, int panel, u32x16* to) {
  const char* block = linear.panel(panel);
  for (int k = 0; k < linear.k; k += kBlock, to += kBlock / 2 * kPanelVectors) block = expand_step<Expander>(block, to);
}

inline void expand_codes(const Linear& linear, int panel, Expanded* to) {
  if (linear.packing == kInt4)
    expand_blocks<Int4Expander>(linear, panel, to);
  else
    expand_blocks<Int8Expander>(linear, panel, to);
}

}  // namespace gs
