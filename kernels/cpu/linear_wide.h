// Linears where the CPU has no instruction for pairs of bf16: weights become fp32, in registers or in a scratch panel.
//
// A pair costs two fused multiply-adds of fp32 in any case, so that codes are not rounded to bf16 on the way. Vectors
// are as long as a register, for GCC keeps longer ones in memory; rows are taken by tiles that fit the register file.
#pragma once

#include <algorithm>

#include "linear.h"

namespace gs {

// 8 x 3 accumulators in 32 registers, 4 x 3 in 16.
constexpr int kWideRows = kWidth == kLanes ? 8 : 4;
constexpr int kWideVectors = 3;
constexpr int kWideColumns = kWideVectors * kWidth;
constexpr int kDirectRows = 4;  // up to here, codes are expanded in registers
constexpr int kInputs = 96;  // of one step: 18 KB of fp32 weights stay in the first-level cache

using Expanded = Wide;

inline int direct_rows() { return kDirectRows; }

// IEEE half precision to fp32, exactly.
inline float widen_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = uint32_t(half & 0x7fffu) << 13;
  const float finite = __builtin_bit_cast(float, rest) * 0x1p112f;
  const uint32_t bits = rest >= 0x0f800000u ? rest | 0x7f800000u : __builtin_bit_cast(uint32_t, finite);
  return __builtin_bit_cast(float, bits | sign);
}

inline Wide load_halves(const char* p) {
#if defined(__AVX512F__)
  return (Wide)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Wide)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Wide v;
  for (int i = 0; i < kWidth; i++) v[i] = widen_half(load_as<uint16_t>(p + 2 * i));
  return v;
#endif
}

// `Together` blocks of 32 inputs x 16 outputs, each: 16 half scales, 16 half minimums, then 4 x 16 words of 4-bit codes.
// Nibble n of word l of vector i is the code of input 8i + n and output l.
template <int Together>
class Int4Expander {
 public:
  static constexpr int kBytes = kInt4BlockBytes;

  explicit Int4Expander(const char* blocks) : blocks_(blocks) {
#pragma GCC unroll 16
    for (int v = 0; v < Together * kParts; v++) {
      scale_[v] = load_halves(at(v) + 2 * first_output(v));
      minimum_[v] = load_halves(at(v) + 32 + 2 * first_output(v));
    }
  }

  // The weights of input 8i + n for register v of outputs.
  Wide weights(int i, int n, int v) const {
    const WideWords packed = load_as<WideWords>(at(v) + 64 + 64 * i + 4 * first_output(v)) >> (4 * n);
#if defined(__AVX512F__)
    const __m512 values = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const Wide code = (Wide)_mm512_permutexvar_ps((__m512i)packed, values);
#else
    const Wide code = __builtin_convertvector((WideInts)(packed & 15u), Wide);
#endif
    return multiply_add(code, scale_[v], minimum_[v]);
  }

 private:
  static int first_output(int v) { return v % kParts * kWidth; }
  const char* at(int v) const { return blocks_ + v / kParts * kBytes; }

  const char* blocks_;
  Wide scale_[Together * kParts], minimum_[Together * kParts];
};

// The same of 8-bit codes: each block 16 half scales, then for each input 16 signed codes.
template <int Together>
class Int8Expander {
 public:
  static constexpr int kBytes = kInt8BlockBytes;

  explicit Int8Expander(const char* blocks) : blocks_(blocks) {
#pragma GCC unroll 16
    for (int v = 0; v < Together * kParts; v++) scale_[v] = load_halves(at(v) + 2 * first_output(v));
  }

  Wide weights(int i, int n, int v) const {
    const char* codes = at(v) + 32 + 16 * (8 * i + n) + first_output(v);
#if defined(__AVX512F__)
    const WideInts whole = (WideInts)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
#elif defined(__AVX2__)
    const WideInts whole = (WideInts)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
#else
    const WideInts whole = __builtin_convertvector(load_as<WideBytes>(codes), WideInts);
#endif
    return __builtin_convertvector(whole, Wide) * scale_[v];
  }

 private:
  static int first_output(int v) { return v % kParts * kWidth; }
  const char* at(int v) const { return blocks_ + v / kParts * kBytes; }

  const char* blocks_;
  Wide scale_[Together * kParts];
};

// `count` values of some rows as fp32, row r at to + r * kInputs.
inline void widen_rows(const bf16* x, long stride, int rows, int count, float* to) {
  for (int r = 0; r < rows; r++, x += stride, to += kInputs) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(x + i));
    for (; i < count; i++) to[i] = widen(x[i]);
  }
}

// Sums of a tile so far, from and to rows of kPanel floats.
template <int Rows, int Vectors>
struct Sums {
  Wide at[Rows][Vectors];

  void read(const float* from) {
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) at[r][v] = load_as<Wide>(from + r * kPanel + v * kWidth);
  }

  void write(float* to) const {
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) store_as(to + r * kPanel + v * kWidth, at[r][v]);
  }

  void add(const float* x, const Wide (&w)[Vectors]) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) {
      const Wide value = broadcast_wide(x[r * kInputs]);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; v++) at[r][v] = multiply_add(value, w[v], at[r][v]);
    }
  }
};

// Some inputs of a panel as [input][kPanel] fp32; one cache line of `ahead` is fetched for every other input.
template <int Rows>
void add_inputs(const float* x, const float* weights, int count, float* out, const char* ahead) {
  for (int column = 0; column < kPanel; column += kWideColumns) {
    Sums<Rows, kWideVectors> sums;
    sums.read(out + column);
    for (int k = 0; k < count; k++) {
      Wide w[kWideVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kWideVectors; v++) w[v] = load_as<Wide>(weights + k * kPanel + column + v * kWidth);
      if (column == 0) __builtin_prefetch(ahead + k * 32l, 0, 2);
      sums.add(x + k, w);
    }
    sums.write(out + column);
  }
}

// The same of a panel of bf16, as [pair][kPanel][2].
template <int Rows>
void add_inputs(const float* x, const bf16* weights, int count, float* out, const char* ahead) {
  for (int column = 0; column < kPanel; column += kWideColumns) {
    Sums<Rows, kWideVectors> sums;
    sums.read(out + column);
    for (int k = 0; k < count; k += 2) {
      WideWords pair[kWideVectors];
      Wide w[kWideVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kWideVectors; v++) {
        pair[v] = load_as<WideWords>(weights + k * kPanel + 2 * (column + v * kWidth));
        w[v] = (Wide)(pair[v] << 16);
      }
      if (column == 0) __builtin_prefetch(ahead + k * 32l, 0, 2);
      sums.add(x + k, w);
#pragma GCC unroll 16
      for (int v = 0; v < kWideVectors; v++) w[v] = (Wide)(pair[v] & 0xffff0000u);
      sums.add(x + k + 1, w);
    }
    sums.write(out + column);
  }
}

// Rows over a whole panel, the inputs in steps so that their weights are read from the first-level cache by all tiles.
template <class T>
void multiply_panel_rows(const Linear& linear, const T* weights, const bf16* x, long stride, int rows, float* out,
                         int next, int first_row) {
  alignas(64) float wide[kWideRows * kInputs];
  std::memset(out, 0, long(rows) * kPanel * sizeof(float));
  for (int k = 0; k < linear.k; k += kInputs) {
    const int count = std::min(kInputs, linear.k - k);
    for (int row = 0; row < rows; row += kWideRows) {
      const int some = std::min(kWideRows, rows - row);
      widen_rows(x + row * stride + k, stride, some, count, wide);
      const char* ahead = lines_ahead(linear, next, first_row + row) + k * 32l;
      with_rows<kWideRows>(some, [&](auto n) {
        add_inputs<n.value>(wide, weights + long(k) * kPanel, count, out + row * kPanel, ahead);
      });
    }
  }
}

// A few rows over a panel of codes, expanded in registers: all three blocks of 16 outputs at once, or one after another
// where there are half the registers.
template <int Rows, template <int> class Expander>
void multiply_codes(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  constexpr int kTogether = kWidth == kLanes ? kPanelVectors : 1;
  constexpr int kVectors = kTogether * kParts;
  constexpr int kBytes = Expander<kTogether>::kBytes;
  alignas(64) float wide[Rows * kInputs];
  for (int first = 0; first < kPanelVectors; first += kTogether) {
    const char* blocks = linear.panel(panel) + first * kBytes;
    Sums<Rows, kVectors> sums = {};
    for (int k = 0; k < linear.k; k += kBlock, blocks += kPanelVectors * kBytes) {
      widen_rows(x + k, stride, Rows, kBlock, wide);
      const Expander<kTogether> expander(blocks);
      for (int i = 0; i < kBlock / 8; i++)
#pragma GCC unroll 8
        for (int n = 0; n < 8; n++) {
          Wide w[kVectors];
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; v++) w[v] = expander.weights(i, n, v);
          sums.add(wide + 8 * i + n, w);
        }
    }
    sums.write(out + first * kLanes);
  }
}

template <template <int> class Expander>
void expand_blocks(const Linear& linear, int panel, Expanded* to) {
  const char* block = linear.panel(panel);
  for (int k = 0; k < linear.k; k += kBlock, to += kBlock * kPanelVectors * kParts)
    for (int first = 0; first < kPanelVectors; first++, block += Expander<1>::kBytes) {
      const Expander<1> expander(block);
      for (int i = 0; i < kBlock / 8; i++)
#pragma GCC unroll 8
        for (int n = 0; n < 8; n++)
#pragma GCC unroll 4
          for (int v = 0; v < kParts; v++)
            to[((8 * i + n) * kPanelVectors + first) * kParts + v] = expander.weights(i, n, v);
    }
}

inline void expand_codes(const Linear& linear, int panel, Expanded* to) {
  if (linear.packing == kInt4)
    expand_blocks<Int4Expander>(linear, panel, to);
  else
    expand_blocks<Int8Expander>(linear, panel, to);
}

inline void multiply(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                     float* out, int next, int first_row) {
  if (linear.packing == kBf16)
    multiply_panel_rows(linear, static_cast<const bf16*>(expanded), x, stride, rows, out, next, first_row);
  else if (expanded)
    multiply_panel_rows(linear, static_cast<const float*>(expanded), x, stride, rows, out, next, first_row);
  else
    with_rows<kDirectRows>(rows, [&](auto count) {
      if (linear.packing == kInt4)
        multiply_codes<count.value, Int4Expander>(linear, panel, x, stride, out);
      else
        multiply_codes<count.value, Int8Expander>(linear, panel, x, stride, out);
    });
  if (linear.bias)
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < kPanel; c += kLanes)
        store(out + r * kPanel + c, load(out + r * kPanel + c) + load(linear.bias + long(panel) * kPanel + c));
}

}  // namespace gs
