// The C interface that kernels/cpu/library.py loads.

#include "attention.h"
#include "elementwise.h"
#include "forward.h"
#include "linear.h"
#include "pool.h"

#pragma GCC visibility push(default)
extern "C" {

void gs_set_threads(int threads) { gs::set_threads(threads); }
int gs_threads() { return gs::threads(); }

const char* gs_instruction_set() {
#if defined(__AVX512BF16__)
  return "avx512_bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__FMA__) && defined(__AVX2__)
  return "avx2";
#elif defined(__ARM_NEON)
  return "neon";
#else
  return "generic";
#endif
}

int gs_blocks_rounded() { return gs::blocks_rounded(); }

long gs_packed_bytes(int n, int k, int packing) {
  const gs::Linear shape{nullptr, nullptr, n, k, packing};
  return shape.num_panels() * shape.panel_bytes();
}

void gs_pack_bf16(const void* weight, int n, int k, void* panels) {
  gs::pack_bf16(static_cast<const gs::bf16*>(weight), n, k, panels);
}

void gs_pack_int4(const void* codes, const void* scales, const void* minimums, int n, int k, void* panels) {
  gs::pack_int4(static_cast<const uint8_t*>(codes), static_cast<const uint16_t*>(scales),
                static_cast<const uint16_t*>(minimums), n, k, panels);
}

void gs_pack_int8(const void* codes, const void* scales, int n, int k, void* panels) {
  gs::pack_int8(static_cast<const int8_t*>(codes), static_cast<const uint16_t*>(scales), n, k, panels);
}

void gs_linear(const gs::Linear* linear, const void* x, long stride, int rows, void* y, int y_is_float) {
  gs::linear(*linear, static_cast<const gs::bf16*>(x), stride, rows, y, y_is_float != 0);
}

void gs_attention(const gs::Attention* attention) { gs::attention(*attention); }
void gs_norm(const gs::Norm* norm) { gs::norm(*norm); }
void gs_silu_and_mul(const gs::Silu* silu) { gs::silu_and_mul(*silu); }
void gs_rope_and_write_kv(const gs::Rope* rope) { gs::rope_and_write_kv(*rope); }

long gs_workspace_bytes(const gs::Model* model, int tokens) { return gs::workspace_bytes(*model, tokens); }
void gs_forward(const gs::Model* model, const gs::Step* step) { gs::forward(*model, *step); }

}  // extern "C"
#pragma GCC visibility pop
