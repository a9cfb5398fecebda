#include "forward.h"

#include <algorithm>
#include <vector>

#include "elementwise.h"
#include "pool.h"

namespace gs {
namespace {

constexpr int kOwnNormRows = 4;  // up to here each thread norms all rows for itself, which costs less than a barrier
constexpr int kNormRowsPerTask = 4;

// Buffers of one step, carved from the caller's workspace.
struct Buffers {
  float* residual;  // [T, hidden]
  float* qkv;       // [T, (heads + 2 kv_heads) D]
  bf16* normed;     // [max(T, kOwnNormRows x threads), hidden]
  bf16* q;          // [T, heads D]
  bf16* attended;   // [T, heads D]
  bf16* activated;  // [T, intermediate]
  float* gate_up;   // [T, 2 intermediate], or nothing where gate and up share no panel
  long bytes;

  Buffers(const Model& m, long tokens, void* workspace) {
    char* next = static_cast<char*>(workspace);
    const auto take = [&](auto*& buffer, long elements) {
      using T = std::remove_reference_t<decltype(*buffer)>;
      buffer = reinterpret_cast<T*>(next);
      next += (elements * long(sizeof(T)) + 63) / 64 * 64;
    };
    const long width = long(m.num_heads) * m.head_dim;
    take(residual, tokens * m.hidden);
    take(qkv, tokens * (width + 2l * m.num_kv_heads * m.head_dim));
    take(normed, std::max<long>(tokens, long(kOwnNormRows) * threads()) * m.hidden);
    take(q, tokens * width);
    take(attended, tokens * width);
    take(activated, tokens * m.intermediate);
    take(gate_up, m.intermediate % kPanel == 0 ? 0 : tokens * 2 * m.intermediate);
    bytes = next - static_cast<char*>(workspace);
  }
};

class Pass {
 public:
  Pass(const Model& model, const Step& step)
      : m_(model), s_(step), b_(model, step.num_tokens, step.workspace), width_(model.num_heads * model.head_dim) {
    attention_.q = b_.q;
    attention_.out = b_.attended;
    attention_.query_start = s_.query_start;
    attention_.context_lens = s_.context_lens;
    attention_.block_tables = s_.block_tables;
    attention_.q_stride = attention_.out_stride = width_;
    attention_.k_block_stride = m_.k_block_stride;
    attention_.k_head_stride = m_.k_head_stride;
    attention_.v_block_stride = m_.v_block_stride;
    attention_.v_head_stride = m_.v_head_stride;
    attention_.table_stride = s_.table_stride;
    attention_.num_requests = s_.num_requests;
    attention_.num_heads = m_.num_heads;
    attention_.num_kv_heads = m_.num_kv_heads;
    attention_.head_dim = m_.head_dim;
    attention_.block_size = m_.block_size;
    attention_.is_float = 0;
    attention_.scale = m_.scale;
    blocks_ = plan_blocks(attention_);
  }

  void run(Team& team) const {
    embed(team);
    for (int i = 0; i < m_.num_layers; i++) {
      const Layer& layer = m_.layers[i];
      project_qkv(team, layer);
      attend_layer(team, layer);
      add_projection(team, layer.out, b_.attended, width_);
      activate(team, layer);
      add_projection(team, layer.down, b_.activated, m_.intermediate);
    }
    finish(team);
  }

 private:
  void embed(Team& team) const {
    team.share(s_.num_tokens, [&](int token) {
      copy_row(m_.embedding + s_.token_ids[token] * m_.hidden, residual(token), m_.hidden);
    });
  }

  float* residual(long token) const { return b_.residual + token * m_.hidden; }

  // The residual's rows, normed, as input of a linear.
  const bf16* normed(Team& team, const float* weight) const {
    const int rows = s_.num_tokens;
    bf16* to = b_.normed;
    const auto norm = [&](int i) { rms_norm_row(residual(i), weight, to + long(i) * m_.hidden, m_.hidden, m_.eps); };
    if (rows <= kOwnNormRows) {
      to += long(team.rank) * kOwnNormRows * m_.hidden;
      for (int i = 0; i < rows; i++) norm(i);
    } else {
      team.share((rows + kNormRowsPerTask - 1) / kNormRowsPerTask, [&](int task) {
        for (int i = task * kNormRowsPerTask; i < std::min(rows, (task + 1) * kNormRowsPerTask); i++) norm(i);
      });
    }
    return to;
  }

  void project_qkv(Team& team, const Layer& layer) const {
    const bf16* x = normed(team, layer.input_norm);
    store_product(team, layer.qkv, x, b_.qkv);
  }

  void store_product(Team& team, const Linear& linear, const bf16* x, float* to) const {
    team.share(linear.num_panels(), [&](int panel) {
      const long first = long(panel) * kPanel;
      const size_t bytes = std::min<long>(kPanel, linear.n - first) * sizeof(float);
      multiply_panel(linear, panel, panel + team.size, x, m_.hidden, s_.num_tokens,
                     [&](int row, int count, const float* tile) {
                       for (int r = 0; r < count; r++)
                         std::memcpy(to + (row + r) * long(linear.n) + first, tile + r * kPanel, bytes);
                     });
    });
  }

  // residual += x W^T + b
  void add_projection(Team& team, const Linear& linear, const bf16* x, long stride) const {
    team.share(linear.num_panels(), [&](int panel) {
      const int first = panel * kPanel;
      const int columns = std::min(kPanel, linear.n - first);
      multiply_panel(linear, panel, panel + team.size, x, stride, s_.num_tokens,
                     [&](int row, int count, const float* tile) {
                       for (int r = 0; r < count; r++) {
                         float* to = residual(row + r) + first;
                         for (int c = 0; c < columns; c += kLanes)
                           store(to + c, load(to + c) + load(tile + r * kPanel + c));
                       }
                     });
    });
  }

  // A request whose tokens all stand in one block needs no stage of its own to write the cache: only this block, on
  // this key head, reads what it writes.
  void attend_layer(Team& team, const Layer& layer) const {
    Attention attention = attention_;
    attention.k_cache = layer.k_cache;
    attention.v_cache = layer.v_cache;
    attention.window = layer.window;
    const bool apart = int(blocks_.size()) == s_.num_requests;
    if (!apart)
      team.share(int(blocks_.size()), [&](int i) {
        for (int head = 0; head < m_.num_kv_heads; head++) rotate_and_write(layer, blocks_[i], head);
      });
    attend_all(team, attention, blocks_, [&](const Task& task) {
      if (apart) rotate_and_write(layer, *task.block, task.kv_head);
    });
  }

  void rotate_and_write(const Layer& layer, const Block& block, int kv_head) const {
    const int D = m_.head_dim;
    const int group = m_.num_heads / m_.num_kv_heads;
    for (int token = block.token; token < block.token + block.num_tokens; token++) {
      const float* cos_sin = m_.cos_sin + s_.positions[token] * D;
      const float* row = b_.qkv + long(token) * (width_ + 2 * m_.num_kv_heads * D);
      for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        rotate(row + head * D, layer.q_norm, cos_sin, b_.q + long(token) * width_ + head * D);
      const int64_t slot = s_.slots[token];
      if (slot < 0) continue;
      const int64_t page = slot / m_.block_size, offset = slot % m_.block_size * D;
      rotate(row + width_ + kv_head * D, layer.k_norm, cos_sin,
             layer.k_cache + page * m_.k_block_stride + kv_head * m_.k_head_stride + offset);
      copy_row(row + width_ + (m_.num_kv_heads + kv_head) * D,
               layer.v_cache + page * m_.v_block_stride + kv_head * m_.v_head_stride + offset, D);
    }
  }

  void rotate(const float* x, const float* norm, const float* cos_sin, bf16* to) const {
    alignas(64) float head[kMaxHeadDim];
    if (norm) {
      rms_norm_row(x, norm, head, m_.head_dim, m_.eps);
      x = head;
    }
    rotate_row(x, cos_sin, to, m_.head_dim);
  }

  // activated = silu(gate) * up
  void activate(Team& team, const Layer& layer) const {
    const bf16* x = normed(team, layer.post_norm);
    if (m_.intermediate % kPanel == 0)
      activate_by_panel(team, layer.gate_up, x);
    else
      activate_by_row(team, layer.gate_up, x);
  }

  // Where no panel holds outputs of both, the panel of the gate and that of `up` are computed together.
  void activate_by_panel(Team& team, const Linear& gate_up, const bf16* x) const {
    const int panels = m_.intermediate / kPanel;
    team.share(panels, [&](int panel) {
      alignas(64) float gate[kGroupRows * kPanel], up[kGroupRows * kPanel];
      const void* gate_panel = expanded_panel(gate_up, panel, s_.num_tokens, 0);
      const void* up_panel = expanded_panel(gate_up, panels + panel, s_.num_tokens, 1);
      for (int row = 0; row < s_.num_tokens; row += kGroupRows) {
        const int count = std::min(kGroupRows, s_.num_tokens - row);
        const bf16* rows = x + long(row) * m_.hidden;
        multiply_group(gate_up, panel, gate_panel, rows, m_.hidden, count, gate, panel + team.size, row);
        multiply_group(gate_up, panels + panel, up_panel, rows, m_.hidden, count, up, panels + panel + team.size, row);
        for (int r = 0; r < count; r++)
          activate_row(gate + r * kPanel, up + r * kPanel, activated(row + r) + panel * kPanel, kPanel);
      }
    });
  }

  void activate_by_row(Team& team, const Linear& gate_up, const bf16* x) const {
    store_product(team, gate_up, x, b_.gate_up);
    team.share(s_.num_tokens, [&](int token) {
      const float* row = b_.gate_up + token * 2l * m_.intermediate;
      activate_row(row, row + m_.intermediate, activated(token), m_.intermediate);
    });
  }

  static void activate_row(const float* gate, const float* up, bf16* to, int columns) {
    for (int c = 0; c < columns; c += kLanes) store(to + c, silu(load(gate + c)) * load(up + c));
  }

  bf16* activated(long token) const { return b_.activated + token * m_.intermediate; }

  void finish(Team& team) const {
    team.share((s_.num_tokens + kNormRowsPerTask - 1) / kNormRowsPerTask, [&](int task) {
      for (int i = task * kNormRowsPerTask; i < std::min(s_.num_tokens, (task + 1) * kNormRowsPerTask); i++)
        rms_norm_row(residual(i), m_.final_norm, s_.hidden + long(i) * m_.hidden, m_.hidden, m_.eps);
    });
  }

  const Model& m_;
  const Step& s_;
  const Buffers b_;
  const long width_;
  Attention attention_{};
  std::vector<Block> blocks_;
};

}  // namespace

long workspace_bytes(const Model& model, int tokens) { return Buffers(model, tokens, nullptr).bytes; }

void forward(const Model& model, const Step& step) {
  const Pass pass(model, step);
  parallel(threads(), [&](Team& team) { pass.run(team); });
}

}  // namespace gs
