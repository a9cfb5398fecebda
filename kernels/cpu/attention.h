// Causal attention of packed queries over a paged cache.
//
// The context is cut at absolute multiples of kChunk keys. Each query row treats a chunk alone (scores, maximum,
// exponentials, weighted values) and merges the chunks in order, so that a row's bits depend on its own query and
// context only: not on its neighbours, the number of threads, or whether it came as a decode or inside a prefill.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace gs {

constexpr int kChunk = 128;      // keys of one chunk
constexpr int kSubPanel = 64;    // keys transposed at once
constexpr int kMaxRows = 48;     // query rows (tokens x heads of the group) of one block; a group is at most this
constexpr int kMaxHeadDim = 256;

// Mirrors kernels/cpu/abi.py. Strides count elements.
struct Attention {
  const void* q;  // [T, heads, D] in the cache's dtype
  void* out;      // [T, heads, D] in the cache's dtype
  const void* k_cache;
  const void* v_cache;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_tables;
  int64_t q_stride, out_stride;
  int64_t k_block_stride, k_head_stride;
  int64_t v_block_stride, v_head_stride;
  int64_t table_stride;
  int32_t num_requests, num_heads, num_kv_heads, head_dim, block_size;
  int32_t window;  // 0: none
  int32_t is_float;
  float scale;
};

// Neighbouring query tokens of one request that are computed together.
struct Block {
  int32_t request, token, num_tokens;  // tokens [token, token + num_tokens) of the packed batch
  int32_t position;                    // of the first token
};

struct Task {
  const Block* block;
  int kv_head;
};

std::vector<Block> plan_blocks(const Attention& attention);

// Computes one task; at its end the first keys of `next` come to the cache.
void attend(const Attention& attention, const Task& task, const Task& next);

// All tasks, the last tokens of a prefill first: they see the most keys. `before(task)` runs on the same thread.
template <class Before>
void attend_all(Team& team, const Attention& attention, const std::vector<Block>& blocks, const Before& before) {
  const int heads = attention.num_kv_heads, count = int(blocks.size()) * heads;
  const auto task_at = [&](int i) {
    const int task = std::max(0, count - 1 - i);
    return Task{&blocks[task / heads], task % heads};
  };
  team.share(count, [&](int i) {
    before(task_at(i));
    attend(attention, task_at(i), task_at(i + team.size));
  });
}

void attention(const Attention& attention);

}  // namespace gs
