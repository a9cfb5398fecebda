#include "attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"
#include "pool.h"

namespace gs {
namespace {

// Scratch of one thread: 48 rows x 128 keys and 48 rows x 256 dimensions.
template <class T>
struct Scratch {
  alignas(64) T q[kMaxRows * kMaxHeadDim];
  alignas(64) T keys[kSubPanel * kMaxHeadDim];
  alignas(64) float scores[kMaxRows * kChunk];
  alignas(64) float part[kMaxRows * kMaxHeadDim];
  alignas(64) float total[kMaxRows * kMaxHeadDim];
  float maximum[kMaxRows], weight[kMaxRows];
};

// Where the keys or values of one request and head lie.
template <class T>
struct Pages {
  const T* base;
  const int32_t* table;
  long block_stride;
  int block_size, head_dim;

  const T* row(int key) const {
    return base + table[key / block_size] * block_stride + long(key % block_size) * head_dim;
  }
};

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

template <int Rows, class T>
void score_rows(const T* q, const T* keys, int head_dim, float* scores) {
  f32x16 acc[Rows][4] = {};
  multiply_keys<Rows>(q, keys, head_dim, acc);
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < 4; v++) store(scores + r * kChunk + v * kLanes, acc[r][v]);
}

template <class T>
void score(const T* q, const T* keys, int head_dim, int rows, float* scores) {
  int r = 0;
  for (; r + 6 <= rows; r += 6) score_rows<6>(q + r * head_dim, keys, head_dim, scores + r * kChunk);
  q += r * head_dim;
  scores += r * kChunk;
  switch (rows - r) {
    case 5: return score_rows<5>(q, keys, head_dim, scores);
    case 4: return score_rows<4>(q, keys, head_dim, scores);
    case 3: return score_rows<3>(q, keys, head_dim, scores);
    case 2: return score_rows<2>(q, keys, head_dim, scores);
    case 1: return score_rows<1>(q, keys, head_dim, scores);
  }
}

// part[r][d..d + 16 V) = sum over keys of scores[r][key] * values[key], keys in order.
template <int Rows, int V, class T>
void weigh_rows(const float* scores, const T* const* values, int begin, int end, int d, int head_dim, float* part) {
  f32x16 acc[Rows][V] = {};
  for (int key = begin; key < end; key++) {
    const T* value = values[key] + d;
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
void weigh_columns(const float* scores, const T* const* values, int begin, int end, int head_dim, int rows, float* part) {
  for (int d = 0; d < head_dim; d += V * kLanes) {
    int r = 0;
    for (; r + 6 <= rows; r += 6)
      weigh_rows<6, V>(scores + r * kChunk, values, begin, end, d, head_dim, part + r * head_dim);
    const float* s = scores + r * kChunk;
    float* to = part + r * head_dim;
    switch (rows - r) {
      case 5: weigh_rows<5, V>(s, values, begin, end, d, head_dim, to); break;
      case 4: weigh_rows<4, V>(s, values, begin, end, d, head_dim, to); break;
      case 3: weigh_rows<3, V>(s, values, begin, end, d, head_dim, to); break;
      case 2: weigh_rows<2, V>(s, values, begin, end, d, head_dim, to); break;
      case 1: weigh_rows<1, V>(s, values, begin, end, d, head_dim, to); break;
    }
  }
}

template <class T>
void weigh(const float* scores, const T* const* values, int begin, int end, int head_dim, int rows, float* part) {
  const int vectors = head_dim / kLanes;
  if (vectors % 4 == 0)
    weigh_columns<4>(scores, values, begin, end, head_dim, rows, part);
  else if (vectors % 3 == 0)
    weigh_columns<3>(scores, values, begin, end, head_dim, rows, part);
  else if (vectors % 2 == 0)
    weigh_columns<2>(scores, values, begin, end, head_dim, rows, part);
  else
    weigh_columns<1>(scores, values, begin, end, head_dim, rows, part);
}

// Scores to weights 2^(s - max) over the visible keys [begin, end) of the chunk, zero elsewhere.
void softmax(float* scores, int begin, int end, float factor, float& maximum_out, float& sum_out) {
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

template <class T>
void attend_typed(const Attention& a, const Block& block, int kv_head) {
  static thread_local Scratch<T> scratch;
  const int group = a.num_heads / a.num_kv_heads;
  const int head_dim = a.head_dim;
  const int rows = block.num_tokens * group;
  const int32_t* table = a.block_tables + block.request * a.table_stride;
  const Pages<T> keys{static_cast<const T*>(a.k_cache) + kv_head * a.k_head_stride, table, a.k_block_stride,
                      a.block_size, head_dim};
  const Pages<T> values{static_cast<const T*>(a.v_cache) + kv_head * a.v_head_stride, table, a.v_block_stride,
                        a.block_size, head_dim};

  for (int t = 0; t < block.num_tokens; t++)
    std::memcpy(scratch.q + long(t) * group * head_dim,
                static_cast<const T*>(a.q) + (block.token + t) * a.q_stride + long(kv_head) * group * head_dim,
                group * head_dim * sizeof(T));

  const int key_end = block.position + block.num_tokens;
  const int key_begin = a.window ? std::max(0, block.position - a.window + 1) : 0;
  const float factor = a.scale * kLog2E;
  const int key_words = int(head_dim * sizeof(T) / 4);
  const long key_bytes = head_dim * long(sizeof(T));
  std::fill(scratch.weight, scratch.weight + rows, 0.0f);

  for (int chunk = key_begin / kChunk * kChunk; chunk < key_end; chunk += kChunk) {
    const int begin = std::max(chunk, key_begin);
    const int end = std::min(chunk + kChunk, key_end);
    const T* value_rows[kChunk];
    for (int sub = 0; sub < kChunk; sub += kSubPanel) {
      if (chunk + sub >= end || chunk + sub + kSubPanel <= begin) continue;
      for (int first = chunk + sub; first < chunk + sub + kSubPanel; first += kLanes) {
        const void* key_rows[kLanes];
        for (int i = 0; i < kLanes; i++) {
          const int key = first + i;
          const bool exists = key >= begin && key < end;
          key_rows[i] = exists ? keys.row(key) : nullptr;
          if (!exists) continue;
          value_rows[key - chunk] = values.row(key);
          prefetch(value_rows[key - chunk], key_bytes);
          if (key + 2 * kLanes < key_end) prefetch(keys.row(key + 2 * kLanes), key_bytes);
        }
        transpose_keys(key_rows, key_words, reinterpret_cast<uint32_t*>(scratch.keys) + (first - chunk - sub));
      }
      score(scratch.q, scratch.keys, head_dim, rows, scratch.scores + sub);
    }
    float chunk_maximum[kMaxRows], chunk_weight[kMaxRows];
    for (int r = 0; r < rows; r++) {
      const int position = block.position + r / group;
      const int from = a.window ? std::max(begin, position - a.window + 1) : begin;
      const int to = std::min(end, position + 1);
      chunk_weight[r] = 0;
      if (from < to)
        softmax(scratch.scores + r * kChunk, from - chunk, to - chunk, factor, chunk_maximum[r], chunk_weight[r]);
      else
        std::memset(scratch.scores + r * kChunk, 0, kChunk * sizeof(float));
    }
    weigh(scratch.scores, value_rows, begin - chunk, end - chunk, head_dim, rows, scratch.part);
    for (int r = 0; r < rows; r++) {
      if (chunk_weight[r] == 0) continue;
      float* total = scratch.total + long(r) * head_dim;
      const float* part = scratch.part + long(r) * head_dim;
      if (scratch.weight[r] == 0) {
        std::memcpy(total, part, head_dim * sizeof(float));
        scratch.maximum[r] = chunk_maximum[r];
        scratch.weight[r] = chunk_weight[r];
        continue;
      }
      const float top = std::max(scratch.maximum[r], chunk_maximum[r]);
      const f32x16 old_factor = exp2(broadcast(scratch.maximum[r] - top));
      const f32x16 new_factor = exp2(broadcast(chunk_maximum[r] - top));
      for (int d = 0; d < head_dim; d += kLanes)
        store(total + d, fma(load(total + d), old_factor, load(part + d) * new_factor));
      scratch.maximum[r] = top;
      scratch.weight[r] = scratch.weight[r] * old_factor[0] + chunk_weight[r] * new_factor[0];
    }
  }

  for (int r = 0; r < rows; r++) {
    T* out = static_cast<T*>(a.out) + (block.token + r / group) * a.out_stride +
             (long(kv_head) * group + r % group) * head_dim;
    const f32x16 inverse = broadcast(1.0f / scratch.weight[r]);
    for (int d = 0; d < head_dim; d += kLanes) store(out + d, load(scratch.total + long(r) * head_dim + d) * inverse);
  }
}

}  // namespace

int plan_blocks(const Attention& a, Block* blocks) {
  const int tokens_per_block = std::max(1, kMaxRows / (a.num_heads / a.num_kv_heads));
  int count = 0;
  for (int request = 0; request < a.num_requests; request++) {
    const int begin = a.query_start[request], end = a.query_start[request + 1];
    const int offset = a.context_lens[request] - (end - begin);
    for (int token = begin; token < end; token += tokens_per_block, count++)
      if (blocks)
        blocks[count] = {request, token, std::min(tokens_per_block, end - token), offset + token - begin};
  }
  return count;
}

void attend(const Attention& attention, const Block& block, int kv_head) {
  if (attention.is_float)
    attend_typed<float>(attention, block, kv_head);
  else
    attend_typed<bf16>(attention, block, kv_head);
}

// Long blocks first within a request's prefill: later tokens see more keys.
void attend_all(Team& team, const Attention& attention, const Block* blocks, int num_blocks) {
  const int heads = attention.num_kv_heads;
  team.share(num_blocks * heads, [&](int i) {
    const int task = num_blocks * heads - 1 - i;
    attend(attention, blocks[task / heads], task % heads);
  });
}

void attention(const Attention& attention) {
  std::vector<Block> blocks(plan_blocks(attention, nullptr));
  plan_blocks(attention, blocks.data());
  parallel(threads(), [&](Team& team) { attend_all(team, attention, blocks.data(), int(blocks.size())); });
}

}  // namespace gs
