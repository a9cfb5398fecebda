#include "attention.h"

#include <algorithm>
#include <vector>

#include "attention_tile.h"
#include "pool.h"

namespace gs {
namespace {

constexpr int kAhead = 32;  // keys are fetched so far ahead; values while their keys are scored

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

  // Addresses of the keys [first, last), fewer than a page or not, with one division.
  void locate(int first, int last, const T** rows) const {
    int page = first / block_size, offset = first % block_size;
    while (first < last) {
      const int count = std::min(block_size - offset, last - first);
      const T* row = base + table[page++] * block_stride + long(offset) * head_dim;
      for (int i = 0; i < count; i++, row += head_dim) *rows++ = row;
      first += count;
      offset = 0;
    }
  }
};

// One head of one request's cache.
template <class T>
struct Context {
  Pages<T> keys, values;
  int begin, end;  // the keys some query row of the block sees

  Context(const Attention& a, const Block& block, int kv_head) {
    const int32_t* table = a.block_tables + block.request * a.table_stride;
    keys = {static_cast<const T*>(a.k_cache) + kv_head * a.k_head_stride, table, a.k_block_stride, a.block_size,
            a.head_dim};
    values = {static_cast<const T*>(a.v_cache) + kv_head * a.v_head_stride, table, a.v_block_stride, a.block_size,
              a.head_dim};
    begin = a.window ? std::max(0, block.position - a.window + 1) : 0;
    end = block.position + block.num_tokens;
  }
};

// The first `count` keys that will be read next: of this context from `from` on, else of the next task.
template <class T>
void locate_ahead(const Attention& a, const Context<T>& context, int from, int count, const Task& next,
                  const T** ahead) {
  if (from < context.end) {
    const int end = std::min(context.end, from + count);
    context.keys.locate(from, end, ahead);
    std::fill(ahead + (end - from), ahead + count, ahead[0]);
  } else {
    const Context<T> other(a, *next.block, next.kv_head);
    const int end = std::min(other.end, other.begin + count);
    other.keys.locate(other.begin, end, ahead);
    std::fill(ahead + (end - other.begin), ahead + count, ahead[0]);
  }
}

// Fills scratch.scores for the keys [begin, end) of a chunk; their values come to the cache meanwhile.
template <class T>
void score_chunk(Scratch<T>& scratch, const T* const* keys, const T* const* values, int begin, int end, int rows,
                 int head_dim) {
  const long bytes = head_dim * long(sizeof(T));
  for (int sub = begin / kSubPanel * kSubPanel; sub < end; sub += kSubPanel) {
    for (int first = sub; first < sub + kSubPanel; first += kLanes) {
      const void* present[kLanes];
      for (int i = 0; i < kLanes; i++) {
        const int key = first + i;
        present[i] = key >= begin && key < end ? keys[key] : nullptr;
        if (present[i]) prefetch(values[key], bytes);
        if (key + kAhead >= begin && key + kAhead < end) prefetch(keys[key + kAhead], bytes);
      }
      transpose_keys(present, int(bytes / 4), reinterpret_cast<uint32_t*>(scratch.keys) + (first - sub));
    }
    score(scratch.q, scratch.keys, head_dim, rows, scratch.scores + sub);
  }
}

// Adds a chunk's weighted values to a row's total; each is relative to its own maximum.
template <class T>
void merge_chunk(Scratch<T>& scratch, int row, float maximum, float weight, int head_dim) {
  float* total = scratch.total + long(row) * head_dim;
  const float* part = scratch.part + long(row) * head_dim;
  if (scratch.weight[row] == 0) {
    std::memcpy(total, part, head_dim * sizeof(float));
    scratch.maximum[row] = maximum;
    scratch.weight[row] = weight;
    return;
  }
  const float top = std::max(scratch.maximum[row], maximum);
  const f32x16 old_factor = exp2(broadcast(scratch.maximum[row] - top));
  const f32x16 new_factor = exp2(broadcast(maximum - top));
  for (int d = 0; d < head_dim; d += kLanes)
    store(total + d, fma(load(total + d), old_factor, load(part + d) * new_factor));
  scratch.maximum[row] = top;
  scratch.weight[row] = scratch.weight[row] * old_factor[0] + weight * new_factor[0];
}

template <class T>
void attend_typed(const Attention& a, const Task& task, const Task& next) {
  static thread_local Scratch<T> scratch;
  const Block& block = *task.block;
  const int head_dim = a.head_dim, group = a.num_heads / a.num_kv_heads, rows = block.num_tokens * group;
  const long first_head = long(task.kv_head) * group * head_dim;
  const float factor = a.scale * kLog2E;
  for (int t = 0; t < block.num_tokens; t++)
    std::memcpy(scratch.q + long(t) * group * head_dim,
                static_cast<const T*>(a.q) + (block.token + t) * a.q_stride + first_head, group * head_dim * sizeof(T));
  std::fill(scratch.weight, scratch.weight + rows, 0.0f);

  const Context<T> context(a, block, task.kv_head);
  const T *keys[kChunk], *values[kChunk], *ahead[kChunk];
  for (int chunk = context.begin / kChunk * kChunk; chunk < context.end; chunk += kChunk) {
    const int begin = std::max(chunk, context.begin) - chunk, end = std::min(chunk + kChunk, context.end) - chunk;
    context.keys.locate(chunk + begin, chunk + end, keys + begin);
    context.values.locate(chunk + begin, chunk + end, values + begin);
    score_chunk(scratch, keys, values, begin, end, rows, head_dim);
    float maximum[kMaxRows], weight[kMaxRows];
    for (int r = 0; r < rows; r++) {
      const int position = block.position + r / group - chunk;
      const int from = a.window ? std::max(begin, position - a.window + 1) : begin;
      const int to = std::min(end, position + 1);
      softmax(scratch.scores + r * kChunk, from, to, factor, maximum[r], weight[r]);
    }
    locate_ahead(a, context, chunk + kChunk, end - begin, next, ahead);
    weigh(scratch.scores, values, begin, end, head_dim, rows, scratch.part, ahead);
    for (int r = 0; r < rows; r++)
      if (weight[r] != 0) merge_chunk(scratch, r, maximum[r], weight[r], head_dim);
  }

  for (int r = 0; r < rows; r++) {
    T* out = static_cast<T*>(a.out) + (block.token + r / group) * a.out_stride + first_head + r % group * head_dim;
    const f32x16 inverse = broadcast(1.0f / scratch.weight[r]);
    for (int d = 0; d < head_dim; d += kLanes) store(out + d, load(scratch.total + long(r) * head_dim + d) * inverse);
  }
}

}  // namespace

std::vector<Block> plan_blocks(const Attention& a) {
  const int tokens_per_block = std::max(1, kMaxRows / (a.num_heads / a.num_kv_heads));
  std::vector<Block> blocks;
  for (int request = 0; request < a.num_requests; request++) {
    const int begin = a.query_start[request], end = a.query_start[request + 1];
    const int offset = a.context_lens[request] - (end - begin);
    for (int token = begin; token < end; token += tokens_per_block)
      blocks.push_back({request, token, std::min(tokens_per_block, end - token), offset + token - begin});
  }
  return blocks;
}

void attend(const Attention& attention, const Task& task, const Task& next) {
  if (attention.is_float)
    attend_typed<float>(attention, task, next);
  else
    attend_typed<bf16>(attention, task, next);
}

void attention(const Attention& attention) {
  const std::vector<Block> blocks = plan_blocks(attention);
  parallel(threads(), [&](Team& team) {
    attend_all(team, attention, blocks, [](const Task&) {});
  });
}

}  // namespace gs
