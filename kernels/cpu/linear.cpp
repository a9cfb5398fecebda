#include "linear.h"

#include <algorithm>
#include <vector>

#include "pool.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
#include "linear_tiles.h"
#elif defined(__AVX512BF16__)
#include "linear_pairs.h"
#else
#include "linear_wide.h"
#endif

namespace gs {

bool blocks_rounded() { return kBf16Pairs; }

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
              if constexpr (kBf16Pairs)
                packed[input / 8 * kLanes + 2 * (lane % 8) + input % 2] |= code << (8 * (input % 8 / 2) + 4 * (lane / 8));
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
              to[32 + (kBf16Pairs ? pair : input * kLanes + lane)] = char(from[input]);
            }
          }
        }
    });
  });
}

const void* expanded_panel(const Linear& linear, int panel, int rows, int slot) {
  if (linear.packing == kBf16) return linear.panel(panel);
  if (rows <= direct_rows()) return nullptr;
  static thread_local std::vector<Expanded> slots[2];
  std::vector<Expanded>& scratch = slots[slot];
  const long bytes = long(linear.k) * kPanel * (kBf16Pairs ? 2 : 4);
  scratch.resize(std::max<size_t>(scratch.size(), bytes / long(sizeof(Expanded))));
  expand_codes(linear, panel, scratch.data());
  return scratch.data();
}

void multiply_group(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                    float* out, int next, int first_row) {
  multiply(linear, panel, expanded, x, stride, rows, out, next, first_row);
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
