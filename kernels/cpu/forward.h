// All layers of a decoder in one call: Llama-shaped (RMSNorm, rotary GQA attention, gated SiLU MLP).
//
// The residual stream and everything between two linears is fp32; inputs of linears, queries and the cache are bf16.
// Work is shared stage by stage between the threads; every output element is computed by one thread in one order.
#pragma once

#include "attention.h"
#include "linear.h"

namespace gs {

// All mirror kernels/cpu/abi.py. Norm weights are fp32; null q_norm and k_norm: none.
struct Layer {
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;
  const float* k_norm;
  Linear qkv, out, gate_up, down;  // gate_up: the gate's outputs first
  bf16* k_cache;
  bf16* v_cache;
  int32_t window;  // 0: none
};

struct Model {
  const Layer* layers;
  const bf16* embedding;  // [vocab, hidden]
  const float* final_norm;
  const float* cos_sin;  // [positions, head_dim]
  int64_t k_block_stride, k_head_stride, v_block_stride, v_head_stride;
  int32_t num_layers, hidden, num_heads, num_kv_heads, head_dim, intermediate, block_size;
  float eps, scale;
};

struct Step {
  const int64_t* token_ids;
  const int64_t* positions;
  const int64_t* slots;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_tables;
  bf16* hidden;     // [T, hidden]: the result, normed
  void* workspace;  // workspace_bytes(model, num_tokens), 64-byte aligned
  int64_t table_stride;
  int32_t num_tokens, num_requests;
};

long workspace_bytes(const Model& model, int tokens);
void forward(const Model& model, const Step& step);

}  // namespace gs
