// Linears where the CPU multiplies tiles of bf16 (amx_bf16): steps of 32 inputs.
//
// The tile instruction sums the 16 even and the 16 odd inputs of a step apart, adds the two, and adds that to the output
// (Intel SDM, TDPBF16PS). The vectors that compute a few rows, or all where the system denies the tiles, keep that
// order: a row has the same bits either way.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "linear_codes.h"

namespace gs {

constexpr int kStep = 32;
constexpr int kStepPairs = kStep / 2;
constexpr int kTileSide = 16;  // rows of a tile, and its outputs
constexpr int kVectorRows = 4;

// Asks the kernel for the registers once; `GRIDSERVE_CPU_TILES=0` leaves them alone.
inline bool tiles_granted() {
  static const bool granted = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    const char* wish = std::getenv("GRIDSERVE_CPU_TILES");
    return !(wish && std::strcmp(wish, "0") == 0) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// Up to here codes are expanded as they are multiplied.
inline int direct_rows() { return tiles_granted() ? std::numeric_limits<int>::max() : kVectorRows; }

// Some rows of a step's inputs as pairs whose odd, or whose even half is zero, each to be broadcast.
template <int Rows>
struct StepInputs {
  alignas(64) uint32_t even[Rows][kStepPairs], odd[Rows][kStepPairs];

  StepInputs(const bf16* x, long stride, int count) {
    for (int r = 0; r < Rows; r++, x += stride) {
      u32x16 pairs = {};
      if (count == kStep)
        pairs = load_as<u32x16>(x);
      else
        std::memcpy(&pairs, x, count * sizeof(bf16));
      store_as(even[r], pairs & 0xffffu);
      store_as(odd[r], pairs & 0xffff0000u);
    }
  }
};

// What a step adds to 16 outputs of some rows.
template <int Rows>
struct StepSums {
  f32x16 even[Rows] = {}, odd[Rows] = {};

  void add(const StepInputs<Rows>& x, int pair, u32x16 w) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) {
      even[r] = dot_pairs(even[r], w, u32x16{} + x.even[r][pair]);
      odd[r] = dot_pairs(odd[r], w, u32x16{} + x.odd[r][pair]);
    }
  }

  template <int Vectors>
  void add_to(f32x16 (&acc)[Rows][Vectors], int v) const {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) acc[r][v] += even[r] + odd[r];
  }
};

template <int Rows, class Expander>
void multiply_blocks(const Linear& linear, int panel, const bf16* x, long stride, float* out) {
  static_assert(kBlock == kStep);
  const char* block = linear.panel(panel);
  f32x16 acc[Rows][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += kStep) {
    const StepInputs<Rows> inputs(x + k, stride, kStep);
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; v++, block += Expander::kBytes) {
      const Expander expander(block);
      StepSums<Rows> step;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) step.add(inputs, 4 * i + j, expander.pairs(i, j));
      step.add_to(acc, v);
    }
  }
  store_tile<Rows>(linear, panel, acc, out);
}

template <int Rows>
void multiply_vectors(const Linear& linear, int panel, const bf16* weights, const bf16* x, long stride, float* out) {
  f32x16 acc[Rows][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += kStep, weights += kStep * kPanel) {
    const int count = std::min(kStep, linear.k - k);
    const StepInputs<Rows> inputs(x + k, stride, count);
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; v++) {
      StepSums<Rows> step;
      for (int p = 0; p < count / 2; p++)
        step.add(inputs, p, load_as<u32x16>(weights + long(p) * 2 * kPanel + v * kStep));
      step.add_to(acc, v);
    }
  }
  store_tile<Rows>(linear, panel, acc, out);
}

// One row of bf16 weights, which come from memory in the order in which they lie.
inline void multiply_row(const Linear& linear, int panel, const bf16* weights, const bf16* x, float* out) {
  f32x16 acc[1][kPanelVectors] = {};
  for (int k = 0; k < linear.k; k += kStep, weights += kStep * kPanel) {
    const int count = std::min(kStep, linear.k - k);
    const StepInputs<1> inputs(x + k, 0, count);
    StepSums<1> step[kPanelVectors];
    for (int p = 0; p < count / 2; p++)
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; v++)
        step[v].add(inputs, p, load_as<u32x16>(weights + long(p) * 2 * kPanel + v * kStep));
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; v++) step[v].add_to(acc, v);
  }
  store_tile<1>(linear, panel, acc, out);
}

template <int Rows>
void multiply_rows(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, float* out) {
  const bf16* weights = static_cast<const bf16*>(expanded);
  if (weights && Rows == 1)
    multiply_row(linear, panel, weights, x, out);
  else if (weights)
    multiply_vectors<Rows>(linear, panel, weights, x, stride, out);
  else if (linear.packing == kInt4)
    multiply_blocks<Rows, Int4Expander>(linear, panel, x, stride, out);
  else
    multiply_blocks<Rows, Int8Expander>(linear, panel, x, stride, out);
}

// Not the header's intrinsics: in GCC 12 these do not tell the compiler what memory they read, and it drops the stores.
#define GS_LOAD_TILE(tile, from, row_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(long(row_bytes)) : "memory")
#define GS_STORE_TILE(tile, to, row_bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(long(row_bytes)) : "memory")

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Registers 0-2 hold sums of the first `first` rows, 3-5 those of 16 more, 6 inputs and 7 weights.
  explicit TileShapes(int first) {
    for (int i = 0; i < 8; i++) row_bytes[i] = 64, rows[i] = kTileSide;
    rows[0] = rows[1] = rows[2] = rows[6] = uint8_t(first);
  }
};

// A step's inputs of up to two tiles of rows: where they lie, or a copy padded with zeros.
struct TileInputs {
  const bf16 *x, *below;
  long x_bytes, below_bytes;
};

constexpr long kPairBytes = kPanel * 4;  // a pair of inputs for a whole panel

inline void add_step(const TileInputs& in, const bf16* w) {
  GS_LOAD_TILE(6, in.x, in.x_bytes);
  GS_LOAD_TILE(7, w, kPairBytes);
  _tile_dpbf16ps(0, 6, 7);
  GS_LOAD_TILE(7, w + kStep, kPairBytes);
  _tile_dpbf16ps(1, 6, 7);
  GS_LOAD_TILE(7, w + 2 * kStep, kPairBytes);
  _tile_dpbf16ps(2, 6, 7);
}

inline void add_double_step(const TileInputs& in, const bf16* w) {
  GS_LOAD_TILE(7, w, kPairBytes);
  GS_LOAD_TILE(6, in.x, in.x_bytes);
  _tile_dpbf16ps(0, 6, 7);
  GS_LOAD_TILE(6, in.below, in.below_bytes);
  _tile_dpbf16ps(3, 6, 7);
  GS_LOAD_TILE(7, w + kStep, kPairBytes);
  _tile_dpbf16ps(4, 6, 7);
  GS_LOAD_TILE(6, in.x, in.x_bytes);
  _tile_dpbf16ps(1, 6, 7);
  GS_LOAD_TILE(7, w + 2 * kStep, kPairBytes);
  _tile_dpbf16ps(2, 6, 7);
  GS_LOAD_TILE(6, in.below, in.below_bytes);
  _tile_dpbf16ps(5, 6, 7);
}

// Weights of one step after the other: bf16 where they lie, codes expanded into the first-level cache.
struct StoredSteps {
  const bf16* weights;

  explicit StoredSteps(const char* panel) : weights(reinterpret_cast<const bf16*>(panel)) {}

  const bf16* next() {
    const bf16* step = weights;
    weights += kStep * kPanel;
    return step;
  }

  // The next `count` steps, to be read several times; `scratch` has room for them.
  StoredSteps several(int count, u32x16*) {
    const StoredSteps first = *this;
    weights += long(count) * kStep * kPanel;
    return first;
  }
};

template <class Expander>
struct ExpandedSteps {
  const char* block;
  alignas(64) u32x16 scratch[2][kStepPairs * kPanelVectors];
  int turn = 0;

  explicit ExpandedSteps(const char* panel) : block(panel) {}

  const bf16* next() {
    u32x16* to = scratch[turn ^= 1];
    block = expand_step<Expander>(block, to);
    return reinterpret_cast<const bf16*>(to);
  }

  StoredSteps several(int count, u32x16* to) {
    const u32x16* first = to;
    for (int i = 0; i < count; i++, to += kStepPairs * kPanelVectors) block = expand_step<Expander>(block, to);
    return StoredSteps(reinterpret_cast<const char*>(first));
  }
};

// The inputs from `k` to `end` of up to two tiles of rows; `fetch(pair)` brings cache lines for later meanwhile.
template <class Steps, class Fetch>
void add_steps(int k, int end, Steps& steps, const bf16* x, long stride, int rows, const Fetch& fetch) {
  alignas(64) bf16 padded[2 * kTileSide * kStep];
  const bool two = rows > kTileSide;
  const auto copy = [&](int first, int k, int count) {
    for (int r = first; r < rows; r++) std::memcpy(padded + r * kStep, x + r * stride + k, count * sizeof(bf16));
  };
  const auto add = [&](const TileInputs& inputs, const bf16* weights) {
    two ? add_double_step(inputs, weights) : add_step(inputs, weights);
  };
  TileInputs inputs{x, x + kTileSide * stride, 2 * stride, 2 * stride};
  const bool ragged = two && rows < 2 * kTileSide;
  if (ragged) {
    std::memset(padded, 0, sizeof padded);
    inputs.below = padded + kTileSide * kStep, inputs.below_bytes = 2 * kStep;
  }
  for (; k + kStep <= end; k += kStep) {
    inputs.x = x + k;
    if (ragged)
      copy(kTileSide, k, kStep);
    else
      inputs.below = x + kTileSide * stride + k;
    add(inputs, steps.next());
    fetch(k / 2);
  }
  if (k >= end) return;
  std::memset(padded, 0, sizeof padded);
  copy(0, k, end - k);
  alignas(64) bf16 weights[kStep * kPanel] = {};
  std::memcpy(weights, steps.next(), long(end - k) * kPanel * sizeof(bf16));
  add({padded, padded + kTileSide * kStep, 2 * kStep, 2 * kStep}, weights);
}

inline void add_bias(const Linear& linear, int panel, int rows, float* out) {
  if (!linear.bias) return;
  for (int v = 0; v < kPanelVectors; v++) {
    const f32x16 bias = load(linear.bias + long(panel) * kPanel + v * kLanes);
    for (int r = 0; r < rows; r++) store(out + r * kPanel + v * kLanes, load(out + r * kPanel + v * kLanes) + bias);
  }
}

// The tile registers of this thread, shaped for some rows, until it is destroyed: a thread that holds none is cheaper to
// switch and lets its core sleep deeper.
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }

  void shape(int rows) {
    rows = std::min(rows, kTileSide);
    if (rows == rows_) return;
    const TileShapes shapes(rows);
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    rows_ = rows;
  }

  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
  }

  static void read(const float* sums, int rows) {
    GS_LOAD_TILE(0, sums, kPairBytes);
    GS_LOAD_TILE(1, sums + kLanes, kPairBytes);
    GS_LOAD_TILE(2, sums + 2 * kLanes, kPairBytes);
    if (rows <= kTileSide) return;
    sums += kTileSide * kPanel;
    GS_LOAD_TILE(3, sums, kPairBytes);
    GS_LOAD_TILE(4, sums + kLanes, kPairBytes);
    GS_LOAD_TILE(5, sums + 2 * kLanes, kPairBytes);
  }

  static void write(float* sums, int rows) {
    GS_STORE_TILE(0, sums, kPairBytes);
    GS_STORE_TILE(1, sums + kLanes, kPairBytes);
    GS_STORE_TILE(2, sums + 2 * kLanes, kPairBytes);
    if (rows <= kTileSide) return;
    sums += kTileSide * kPanel;
    GS_STORE_TILE(3, sums, kPairBytes);
    GS_STORE_TILE(4, sums + kLanes, kPairBytes);
    GS_STORE_TILE(5, sums + 2 * kLanes, kPairBytes);
  }

 private:
  int rows_ = 0;
};

// Any number of rows; `out` has room for a multiple of two tiles of them. Two tiles of rows keep their sums in registers
// for the whole K. More rows take it in parts, whose weights stay in the first-level cache for all of them; sums wait in
// `out` in between, exactly.
template <class Steps>
void multiply_tiles(const Linear& linear, Steps steps, const bf16* x, long stride, int rows, float* out, int next,
                    int first_row) {
  constexpr int kGroup = 2 * kTileSide;
  TileRegisters registers;
  const auto add_group = [&](auto& weights, int k, int end, int row) {
    const int some = std::min(kGroup, rows - row);
    float* sums = out + row * kPanel;
    registers.shape(some);
    if (k == 0)
      registers.clear();
    else
      registers.read(sums, some);
    const char* ahead[kGroup / kTileRows];
    int streams = 0;
    for (int part = row; part < row + some; part += kTileRows, streams++) {
      ahead[streams] = lines_ahead(linear, next, first_row + part);
      if (ahead[streams] == linear.panel(0)) break;
    }
    add_steps(k, end, weights, x + row * stride, stride, some, [&](int pair) {
      for (int i = 0; i < streams; i++)
#pragma GCC unroll 16
        for (int line = 0; line < kStepPairs; line++) __builtin_prefetch(ahead[i] + (pair + line) * 64l, 0, 2);
    });
    registers.write(sums, some);
  };
  if (rows <= kGroup) return add_group(steps, 0, linear.k, 0);
  constexpr int kMostSteps = 9;  // 27 KB of weights beside 18 KB of inputs
  alignas(64) u32x16 scratch[kMostSteps * kStepPairs * kPanelVectors];
  const int num_steps = (linear.k + kStep - 1) / kStep;
  const int parts = (num_steps + kMostSteps - 1) / kMostSteps;
  for (int part = 0; part < parts; part++) {
    const int first = part * num_steps / parts, last = (part + 1) * num_steps / parts;
    const StoredSteps weights = steps.several(last - first, scratch);
    for (int row = 0; row < rows; row += kGroup) {
      StoredSteps again = weights;
      add_group(again, first * kStep, std::min(last * kStep, linear.k), row);
    }
  }
}

inline void multiply(const Linear& linear, int panel, const void* expanded, const bf16* x, long stride, int rows,
                     float* out, int next, int first_row) {
  if (tiles_granted()) {
    const auto multiply_with = [&](auto steps) { multiply_tiles(linear, steps, x, stride, rows, out, next, first_row); };
    if (linear.packing == kBf16)
      multiply_with(StoredSteps(linear.panel(panel)));
    else if (linear.packing == kInt4)
      multiply_with(ExpandedSteps<Int4Expander>(linear.panel(panel)));
    else
      multiply_with(ExpandedSteps<Int8Expander>(linear.panel(panel)));
    return add_bias(linear, panel, rows, out);
  }
  for (int row = 0; row < rows; row += kVectorRows)
    with_rows<kVectorRows>(std::min(kVectorRows, rows - row), [&](auto count) {
      multiply_rows<count.value>(linear, panel, expanded, x + row * stride, stride, out + row * kPanel);
    });
}

}  // namespace gs
