// The arithmetic of one chunk of keys for a block of query rows: transpose, score, softmax, weigh.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "linear.h"

namespace gs {

#if defined(__AVX512F__)

inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#endif

// Sixteen keys as 32-bit words [D * sizeof(T) / 4][16], one panel vector of kSubPanel / 16; null rows give zeros.
inline void transpose_keys(const void* const (&rows)[kLanes], int words, uint32_t* to) {
  constexpr long kStride = kSubPanel;
#if defined(__AVX512F__)
  for (int w = 0; w < words; w += kLanes) {
    const __mmask16 kept = words - w >= kLanes ? 0xffff : __mmask16((1u << (words - w)) - 1);
    __m512i r[16];
    for (int i = 0; i < kLanes; i++)
      r[i] = rows[i] ? _mm512_maskz_loadu_epi32(kept, static_cast<const uint32_t*>(rows[i]) + w) : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < kLanes && w + i < words; i++) _mm512_store_si512(to + (w + i) * kStride, r[i]);
  }
#else
  for (int i = 0; i < kLanes; i++) {
    const uint32_t* from = static_cast<const uint32_t*>(rows[i]);
    for (int w = 0; w < words; w++) to[w * kStride + i] = from ? from[w] : 0;
  }
#endif
}

template <int Rows>
void multiply_keys(const bf16* q, const bf16* keys, int head_dim, f32x16 (&acc)[Rows][4]) {
  multiply_pairs<Rows, 4>(q, head_dim, keys, head_dim / 2, acc);
}

template <int Rows>
void multiply_keys(const float* q, const float* keys, int head_dim, f32x16 (&acc)[Rows][4]) {
  for (int d = 0; d < head_dim; d++) {
    f32x16 k[4];
    for (int v = 0; v < 4; v++) k[v] = load(keys + (long(d) * 4 + v) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      const f32x16 x = broadcast(q[r * head_dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) acc[r][v] = fma(x, k[v], acc[r][v]);
    }
  }
}

// The same in registers shorter than 16 lanes, 16 keys at a time.
template <int Rows>
void score_parts(const bf16* q, const bf16* keys, int head_dim, float* scores) {
  for (int first = 0; first < kSubPanel; first += kLanes) {
    Wide acc[Rows][kParts] = {};
    for (int d = 0; d < head_dim; d += 2) {
      WideWords pair[kParts];
#pragma GCC unroll 4
      for (int v = 0; v < kParts; v++) pair[v] = load_as<WideWords>(keys + d * kSubPanel + 2 * (first + v * kWidth));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        const Wide low = broadcast_wide(widen(q[r * head_dim + d]));
        const Wide high = broadcast_wide(widen(q[r * head_dim + d + 1]));
#pragma GCC unroll 4
        for (int v = 0; v < kParts; v++) {
          acc[r][v] = multiply_add(low, (Wide)(pair[v] << 16), acc[r][v]);
          acc[r][v] = multiply_add(high, (Wide)(pair[v] & 0xffff0000u), acc[r][v]);
        }
      }
    }
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < kParts; v++) store_as(scores + r * kChunk + first + v * kWidth, acc[r][v]);
  }
}

template <int Rows>
void score_parts(const float* q, const float* keys, int head_dim, float* scores) {
  for (int first = 0; first < kSubPanel; first += kLanes) {
    Wide acc[Rows][kParts] = {};
    for (int d = 0; d < head_dim; d++) {
      Wide key[kParts];
#pragma GCC unroll 4
      for (int v = 0; v < kParts; v++) key[v] = load_wide(keys + d * kSubPanel + first + v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        const Wide x = broadcast_wide(q[r * head_dim + d]);
#pragma GCC unroll 4
        for (int v = 0; v < kParts; v++) acc[r][v] = multiply_add(x, key[v], acc[r][v]);
      }
    }
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < kParts; v++) store_as(scores + r * kChunk + first + v * kWidth, acc[r][v]);
  }
}

template <int Rows, class T>
void score_rows(const T* q, const T* keys, int head_dim, float* scores) {
  if constexpr (kParts > 1) return score_parts<Rows>(q, keys, head_dim, scores);
  f32x16 acc[Rows][4] = {};
  multiply_keys<Rows>(q, keys, head_dim, acc);
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < 4; v++) store(scores + r * kChunk + v * kLanes, acc[r][v]);
}

template <class T>
void score(const T* q, const T* keys, int head_dim, int rows, float* scores) {
  for (int r = 0; r < rows; r += 6, q += 6 * head_dim, scores += 6 * kChunk) switch (rows - r) {
      case 1: score_rows<1>(q, keys, head_dim, scores); break;
      case 2: score_rows<2>(q, keys, head_dim, scores); break;
      case 3: score_rows<3>(q, keys, head_dim, scores); break;
      case 4: score_rows<4>(q, keys, head_dim, scores); break;
      case 5: score_rows<5>(q, keys, head_dim, scores); break;
      default: score_rows<6>(q, keys, head_dim, scores);
    }
}

// `weigh_rows` for 16 columns in registers shorter than 16 lanes.
template <int Rows, class T>
void weigh_parts(const float* scores, const T* const* values, int begin, int end, int d, int head_dim, float* part,
                 const T* const* ahead) {
  Wide acc[Rows][kParts] = {};
  for (int key = begin; key < end; key++) {
    if (ahead) prefetch(ahead[key - begin], head_dim * long(sizeof(T)));
    Wide x[kParts];
#pragma GCC unroll 4
    for (int v = 0; v < kParts; v++) x[v] = load_wide(values[key] + d + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      const Wide p = broadcast_wide(scores[r * kChunk + key]);
#pragma GCC unroll 4
      for (int v = 0; v < kParts; v++) acc[r][v] = multiply_add(p, x[v], acc[r][v]);
    }
  }
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < kParts; v++) store_as(part + long(r) * head_dim + d + v * kWidth, acc[r][v]);
}

// part[r][d..d + 16 V) = sum over keys of scores[r][key] * values[key], keys in order. Meanwhile the rows of `ahead`
// (null for none, kChunk of them) come to the cache, one for each key.
template <int Rows, int V, class T>
void weigh_rows(const float* scores, const T* const* values, int begin, int end, int d, int head_dim, float* part,
                const T* const* ahead) {
  if constexpr (kParts > 1) {
    for (int v = 0; v < V; v++)
      weigh_parts<Rows>(scores, values, begin, end, d + v * kLanes, head_dim, part, v == 0 ? ahead : nullptr);
    return;
  }
  f32x16 acc[Rows][V] = {};
  for (int key = begin; key < end; key++) {
    const T* value = values[key] + d;
    if (ahead) prefetch(ahead[key - begin], head_dim * long(sizeof(T)));
    f32x16 x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) x[v] = load(value + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      const f32x16 p = broadcast(scores[r * kChunk + key]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[r][v] = fma(p, x[v], acc[r][v]);
    }
  }
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < V; v++) store(part + long(r) * head_dim + d + v * kLanes, acc[r][v]);
}

template <int V, class T>
void weigh_columns(const float* scores, const T* const* values, int begin, int end, int head_dim, int rows, float* part,
                   const T* const* ahead) {
  for (int d = 0; d < head_dim; d += V * kLanes)
    for (int r = 0; r < rows; r += 6) {
      const float* s = scores + r * kChunk;
      float* to = part + long(r) * head_dim;
      const T* const* fetch = r == 0 && d == 0 ? ahead : nullptr;
      switch (rows - r) {
        case 1: weigh_rows<1, V>(s, values, begin, end, d, head_dim, to, fetch); break;
        case 2: weigh_rows<2, V>(s, values, begin, end, d, head_dim, to, fetch); break;
        case 3: weigh_rows<3, V>(s, values, begin, end, d, head_dim, to, fetch); break;
        case 4: weigh_rows<4, V>(s, values, begin, end, d, head_dim, to, fetch); break;
        case 5: weigh_rows<5, V>(s, values, begin, end, d, head_dim, to, fetch); break;
        default: weigh_rows<6, V>(s, values, begin, end, d, head_dim, to, fetch);
      }
    }
}

template <class T>
void weigh(const float* scores, const T* const* values, int begin, int end, int head_dim, int rows, float* part,
           const T* const* ahead) {
  const int vectors = head_dim / kLanes;
  if (vectors % 4 == 0)
    weigh_columns<4>(scores, values, begin, end, head_dim, rows, part, ahead);
  else if (vectors % 3 == 0)
    weigh_columns<3>(scores, values, begin, end, head_dim, rows, part, ahead);
  else if (vectors % 2 == 0)
    weigh_columns<2>(scores, values, begin, end, head_dim, rows, part, ahead);
  else
    weigh_columns<1>(scores, values, begin, end, head_dim, rows, part, ahead);
}

// Scores to weights 2^(s - max) over the visible keys [begin, end) of the chunk, zero elsewhere. No key visible: sum 0.
inline void softmax(float* scores, int begin, int end, float factor, float& maximum_out, float& sum_out) {
  if (begin >= end) {
    std::memset(scores, 0, kChunk * sizeof(float));
    sum_out = 0;
    return;
  }
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const f32x16 hidden = broadcast(-INFINITY);
  f32x16 best = hidden;
  f32x16 s[kChunk / kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kChunk / kLanes; i++) {
    const i32x16 key = lane + i * kLanes;
    const i32x16 seen = (key >= begin) & (key < end);
    s[i] = load(scores + i * kLanes) * broadcast(factor);
    s[i] = (f32x16)(((i32x16)s[i] & seen) | ((i32x16)hidden & ~seen));
    best = maximum(best, s[i]);
  }
  const float top = largest(best);
  f32x16 weight = {};
#pragma GCC unroll 8
  for (int i = 0; i < kChunk / kLanes; i++) {
    const f32x16 p = exp2(s[i] - broadcast(top));
    weight = weight + p;
    store(scores + i * kLanes, p);
  }
  maximum_out = top;
  sum_out = sum(weight);
}

}  // namespace gs
