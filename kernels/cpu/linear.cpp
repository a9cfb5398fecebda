#include "linear.h"

#include <algorithm>
#include <vector>

#include "pool.h"

namespace gs {
namespace {

template <int Rows>
void store_tile(const Linear& linear, int panel, const f32x16 (&acc)[Rows][kPanelVectors], float* out) {
  for (int v = 0; v < kPanelVectors; v++) {
    const f32x16 bias = linear.bias ? load(linear.bias + long(panel) * kPanel + v * kLanes) : f32x16{};
    for (int r = 0; r < Rows; r++) store(out + r * kPanel + v * kLanes, linear.bias ? acc[r][v] + bias : acc[r][v]);
  }
}

template <int Rows>
void multiply_bf16(const Linear& linear, int panel, const bf16* expanded, const bf16* x, long stride, float* out,
                   const char* ahead) {
  f32x16 acc[Rows][kPanelVectors] = {};
  // A few rows of bf16 weights run at the speed of memory, where the hardware prefetcher does as well.
  multiply_pairs<Rows, kPanelVectors, (Rows > kDirectRows)>(x, stride, expanded, linear.k / 2, acc, ahead);
  store_tile<Rows>(linear, panel, acc, out);
}

// Codes of a panel expanded for many rows: pairs of bf16 where the CPU multiplies those, else fp32.
#if defined(__AVX512F__) && !defined(__AVX512BF16__)
using Expanded = f32x16;
constexpr int kInputsOfExpanded = 1;
#else
using Expanded = u32x16;
constexpr int kInputsOfExpanded = 2;
#endif

#if defined(__AVX512BF16__)

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

template <class Expander>
void expand_blocks(const Linear& linear, int panel, Expanded* to) {
  const char* block = linear.panel(panel);
  for (int k = 0; k < linear.k; k += kBlock, to += kBlock / 2 * kPanelVectors)
    for (int v = 0; v < kPanelVectors; v++, block += Expander::kBytes) {
      const Expander expander(block);
      for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) to[(4 * i + j) * kPanelVectors + v] = expander.pairs(i, j);
    }
}

#elif defined(__AVX512F__)

// Without an instruction for pairs of bf16, a pair costs two fused multiply-adds of fp32 in any case: codes become fp32
// weights, and nothing is gained by rounding them.

// A block of 32 inputs x 16 outputs: 16 half scales, 16 half minimums, then 4 vectors of 4-bit codes. Nibble n of
// 32-bit lane l in vector i is the code of input 8i + n and output l.
class Int4Expander {
 public:
  static constexpr int kBytes = kInt4BlockBytes;

  explicit Int4Expander(const char* block)
      : codes_(block + 64),
        scale_(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)))),
        minimum_(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32)))) {}

  // The weights of input 8i + n for the sixteen outputs.
  f32x16 weights(int i, int n) const {
    const __m512 values = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i packed = _mm512_loadu_si512(codes_ + 64 * i);
    return (f32x16)_mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(packed, 4 * n), values), scale_, minimum_);
  }

 private:
  const char* codes_;
  __m512 scale_, minimum_;
};

// A block of 32 inputs x 16 outputs: 16 half scales, then for each input 16 signed codes.
class Int8Expander {
 public:
  static constexpr int kBytes = kInt8BlockBytes;

  explicit Int8Expander(const char* block)
      : codes_(block + 32),
        scale_(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)))) {}

  f32x16 weights(int i, int n) const {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes_ + 16 * (8 * i + n)));
    return (f32x16)_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale_);
  }

 private:
  const char* codes_;
  __m512 scale_;
};

// Rows of x as fp32, one after another, in scratch of this thread.
template <int Rows>
const float* widened(const bf16* x, long stride, int k) {
  static thread_local std::vector<f32x16> scratch;
  scratch.resize(std::max<size_t>(scratch.size(), long(Rows) * k / kLanes));
  float* to = reinterpret_cast<float*>(scratch.data());
  for (int r = 0; r < Rows; r++)
    for (int i = 0; i < k; i += kLanes) store(to + long(r) * k + i, load(x + r * stride + i));
  return to;
}

template <int Rows, class Expander>
void multiply_blocks(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  const float* wide = widened<Rows>(x, stride, linear.k);
  const char* block = linear.panel(panel);
  f32x16 acc[Rows][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += kBlock, block += kPanelVectors * Expander::kBytes) {
    const Expander expanders[kPanelVectors] = {Expander(block), Expander(block + Expander::kBytes),
                                               Expander(block + 2 * Expander::kBytes)};
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
      for (int n = 0; n < 8; n++) {
        f32x16 w[kPanelVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; v++) w[v] = expanders[v].weights(i, n);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; r++) {
          const f32x16 value = broadcast(wide[long(r) * linear.k + k + 8 * i + n]);
#pragma GCC unroll 8
          for (int v = 0; v < kPanelVectors; v++) acc[r][v] = fma(value, w[v], acc[r][v]);
        }
      }
  }
  store_tile<Rows>(linear, panel, acc, out);
}

template <class Expander>
void expand_blocks(const Linear& linear, int panel, f32x16* to) {
  const char* block = linear.panel(panel);
  for (int k = 0; k < linear.k; k += kBlock, to += kBlock * kPanelVectors)
    for (int v = 0; v < kPanelVectors; v++, block += Expander::kBytes) {
      const Expander expander(block);
      for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
        for (int n = 0; n < 8; n++) to[(8 * i + n) * kPanelVectors + v] = expander.weights(i, n);
    }
}

// Rows over a panel of expanded fp32 weights, laid out as [input][vector][lane].
template <int Rows>
void multiply_wide(const Linear& linear, int panel, const f32x16* expanded, const bf16* x, long stride, float* out,
                   const char* ahead) {
  const float* wide = widened<Rows>(x, stride, linear.k);
  f32x16 acc[Rows][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += 2) {
    __builtin_prefetch(ahead + k * 32l, 0, 2);
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
      f32x16 w[kPanelVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; v++) w[v] = expanded[(k + n) * kPanelVectors + v];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; r++) {
        const f32x16 value = broadcast(wide[long(r) * linear.k + k + n]);
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVectors; v++) acc[r][v] = fma(value, w[v], acc[r][v]);
      }
    }
  }
  store_tile<Rows>(linear, panel, acc, out);
}

#endif

#if defined(__AVX512F__)

template <int Rows>
void multiply_codes(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  if (linear.packing == kInt4)
    multiply_blocks<Rows, Int4Expander>(linear, panel, x, stride, out);
  else
    multiply_blocks<Rows, Int8Expander>(linear, panel, x, stride, out);
}

void expand_codes(const Linear& linear, int panel, Expanded* to) {
  if (linear.packing == kInt4)
    expand_blocks<Int4Expander>(linear, panel, to);
  else
    expand_blocks<Int8Expander>(linear, panel, to);
}

#else

template <int Rows>
void multiply_codes(const Linear&, int, const bf16*, long, float*) {}
void expand_codes(const Linear&, int, Expanded*) {}

#endif

template <int Rows>
void multiply(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, float* out,
              const char* ahead) {
  if constexpr (Rows <= kDirectRows)
    if (!expanded) return multiply_codes<Rows>(linear, panel, x, stride, out);
#if defined(__AVX512F__) && !defined(__AVX512BF16__)
  if (linear.packing != kBf16)
    return multiply_wide<Rows>(linear, panel, static_cast<const f32x16*>(expanded), x, stride, out, ahead);
#endif
  multiply_bf16<Rows>(linear, panel, static_cast<const bf16*>(expanded), x, stride, out, ahead);
}

}  // namespace

bool blocks_supported() {
#if defined(__AVX512F__)
  return true;
#else
  return false;
#endif
}

bool blocks_rounded() { return kInputsOfExpanded == 2; }

void pack_bf16(const bf16* weight, int n, int k, void* panels) {
  const int num_panels = (n + kPanel - 1) / kPanel;
  parallel(threads(), [&](Team& team) {
    team.share(num_panels, [&](int panel) {
      bf16* to = static_cast<bf16*>(panels) + long(panel) * kPanel * k;
      for (int p = 0; p < k / 2; p++)
        for (int column = 0; column < kPanel; column++, to += 2) {
          const long row = long(panel) * kPanel + column;
          to[0] = row < n ? weight[row * k + 2 * p] : 0;
          to[1] = row < n ? weight[row * k + 2 * p + 1] : 0;
        }
    });
  });
}

void pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* minimums, int n, int k, void* panels) {
  const int num_panels = (n + kPanel - 1) / kPanel;
  const int blocks = k / kBlock;
  parallel(threads(), [&](Team& team) {
    team.share(num_panels, [&](int panel) {
      char* to = static_cast<char*>(panels) + long(panel) * blocks * kPanelVectors * kInt4BlockBytes;
      for (int b = 0; b < blocks; b++)
        for (int v = 0; v < kPanelVectors; v++, to += kInt4BlockBytes) {
          std::memset(to, 0, kInt4BlockBytes);
          const long first = long(panel) * kPanel + v * kLanes;
          uint16_t* half = reinterpret_cast<uint16_t*>(to);
          uint32_t* packed = reinterpret_cast<uint32_t*>(to + 64);
          for (int lane = 0; lane < kLanes && first + lane < n; lane++) {
            half[lane] = scales[(first + lane) * blocks + b];
            half[kLanes + lane] = minimums[(first + lane) * blocks + b];
            for (int input = 0; input < kBlock; input++) {
              const uint32_t code = codes[(first + lane) * k + b * kBlock + input] & 15u;
              if constexpr (kInputsOfExpanded == 2)
                packed[input / 8 * kLanes + 2 * (lane % 8) + input % 2] |= code << (4 * (2 * (input % 8 / 2) + lane / 8));
              else
                packed[input / 8 * kLanes + lane] |= code << (4 * (input % 8));
            }
          }
        }
    });
  });
}

void pack_int8(const int8_t* codes, const uint16_t* scales, int n, int k, void* panels) {
  const int num_panels = (n + kPanel - 1) / kPanel;
  const int blocks = k / kBlock;
  parallel(threads(), [&](Team& team) {
    team.share(num_panels, [&](int panel) {
      char* to = static_cast<char*>(panels) + long(panel) * blocks * kPanelVectors * kInt8BlockBytes;
      for (int b = 0; b < blocks; b++)
        for (int v = 0; v < kPanelVectors; v++, to += kInt8BlockBytes) {
          std::memset(to, 0, kInt8BlockBytes);
          const long first = long(panel) * kPanel + v * kLanes;
          for (int lane = 0; lane < kLanes && first + lane < n; lane++) {
            std::memcpy(to + 2 * lane, scales + (first + lane) * blocks + b, 2);
            const int8_t* from = codes + (first + lane) * k + b * kBlock;
            for (int input = 0; input < kBlock; input++) {
              const int pair = input / 2 * 32 + lane / 8 * 16 + lane % 8 * 2 + input % 2;
              to[32 + (kInputsOfExpanded == 2 ? pair : input * kLanes + lane)] = char(from[input]);
            }
          }
        }
    });
  });
}

const void* expanded_panel(const Linear& linear, int panel, int rows, int slot) {
  if (linear.packing == kBf16) return linear.panel(panel);
  if (rows <= kDirectRows) return nullptr;
  static thread_local std::vector<Expanded> slots[2];
  std::vector<Expanded>& scratch = slots[slot];
  scratch.resize(std::max<size_t>(scratch.size(), long(linear.k) / kInputsOfExpanded * kPanelVectors));
  expand_codes(linear, panel, scratch.data());
  return scratch.data();
}

void multiply_tile(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                   float* out, const char* ahead) {
  switch (rows) {
    case 1: return multiply<1>(linear, panel, expanded, x, stride, out, ahead);
    case 2: return multiply<2>(linear, panel, expanded, x, stride, out, ahead);
    case 3: return multiply<3>(linear, panel, expanded, x, stride, out, ahead);
    case 4: return multiply<4>(linear, panel, expanded, x, stride, out, ahead);
    case 5: return multiply<5>(linear, panel, expanded, x, stride, out, ahead);
    case 6: return multiply<6>(linear, panel, expanded, x, stride, out, ahead);
    case 7: return multiply<7>(linear, panel, expanded, x, stride, out, ahead);
    default: return multiply<8>(linear, panel, expanded, x, stride, out, ahead);
  }
}

void linear(const Linear& linear, const bf16* x, long stride, int rows, void* y, bool y_is_float) {
  parallel(threads(), [&](Team& team) {
    team.share(linear.num_panels(), [&](int panel) {
      const long first = long(panel) * kPanel;
      const int columns = int(std::min<long>(kPanel, linear.n - first));
      multiply_panel(linear, panel, panel + team.size, x, stride, rows, [&](int row, int count, const float* tile) {
        for (int r = 0; r < count; r++) {
          const float* from = tile + r * kPanel;
          const long to = (row + r) * long(linear.n) + first;
          if (y_is_float) {
            std::memcpy(static_cast<float*>(y) + to, from, columns * sizeof(float));
          } else {
            bf16* out = static_cast<bf16*>(y) + to;
            int c = 0;
            for (; c + kLanes <= columns; c += kLanes) store(out + c, load(from + c));
            for (; c < columns; c++) out[c] = narrow(from[c]);
          }
        }
      });
    });
  });
}

}  // namespace gs
