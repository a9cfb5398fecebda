// Sixteen-lane vectors on any CPU: GCC vector extensions, with intrinsics where the compiler does not find them.
//
// Every arithmetic helper is one fixed sequence of operations per lane, so that a row's result never depends on how
// many rows were computed beside it. Contraction is off (-ffp-contract=off): a fused multiply-add is always written.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gs {

using bf16 = uint16_t;

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));

constexpr int kLanes = 16;

template <class V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store_as(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// Not `f32x16{} + x`: the addition stays in the code, for the sake of -0.
inline f32x16 broadcast(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline f32x16 load(const float* p) { return load_as<f32x16>(p); }
inline void store(float* p, f32x16 v) { store_as(p, v); }

inline float widen(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline f32x16 load(const bf16* p) {
  return (f32x16)(__builtin_convertvector(load_as<u16x16>(p), u32x16) << 16);
}

// Round to nearest even; a NaN stays a NaN.
inline u16x16 narrow(f32x16 v) {
#if defined(__AVX512BF16__)
  return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  const u32x16 bits = (u32x16)v;
  const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32x16 quiet = (bits >> 16) | 0x40u;
  const u32x16 is_nan = (u32x16)(v != v);
  return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), u16x16);
#endif
}

inline void store(bf16* p, f32x16 v) { store_as(p, narrow(v)); }

inline bf16 narrow(float x) {
  const u16x16 v = narrow(broadcast(x));
  return v[0];
}

inline void store_one(float* p, float x) { *p = x; }
inline void store_one(bf16* p, float x) { *p = narrow(x); }
inline float load_one(const float* p) { return *p; }
inline float load_one(const bf16* p) { return widen(*p); }

inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  __m256 a2[2], b2[2], c2[2];
  std::memcpy(a2, &a, 64);
  std::memcpy(b2, &b, 64);
  std::memcpy(c2, &c, 64);
  c2[0] = _mm256_fmadd_ps(a2[0], b2[0], c2[0]);
  c2[1] = _mm256_fmadd_ps(a2[1], b2[1], c2[1]);
  return load_as<f32x16>(c2);
#else
  return a * b + c;
#endif
}

// Vectors as long as a register, for inner loops: GCC keeps longer ones in memory.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float Wide __attribute__((vector_size(kWidth * 4)));
typedef uint32_t WideWords __attribute__((vector_size(kWidth * 4)));
typedef int32_t WideInts __attribute__((vector_size(kWidth * 4)));
typedef uint16_t WideHalves __attribute__((vector_size(kWidth * 2)));
typedef int8_t WideBytes __attribute__((vector_size(kWidth)));

inline Wide broadcast_wide(float x) {
#if defined(__AVX512F__)
  return (Wide)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Wide)_mm256_set1_ps(x);
#else
  return Wide{x, x, x, x};
#endif
}

inline Wide multiply_add(Wide a, Wide b, Wide c) {
#if defined(__AVX512F__)
  return (Wide)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Wide)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Wide load_wide(const float* p) { return load_as<Wide>(p); }
inline Wide load_wide(const bf16* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Wide)((WideWords)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  return (Wide)(__builtin_convertvector(load_as<WideHalves>(p), WideWords) << 16);
#endif
}

// Two bf16 of one row, as they lie in memory, in every lane.
inline u32x16 broadcast_pair(const bf16* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return u32x16{} + pair;
}

// acc + low(a) * low(b) + high(a) * high(b), each lane holding a pair of bf16.
inline f32x16 dot_pairs(f32x16 acc, u32x16 a, u32x16 b) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const u32x16 high = u32x16{} + 0xffff0000u;
  acc = fma((f32x16)(a & high), (f32x16)(b & high), acc);
  return fma((f32x16)(a << 16), (f32x16)(b << 16), acc);
#endif
}

// The second operand where either is NaN, as on x86.
inline f32x16 maximum(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

inline f32x16 minimum(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

template <int Distance>
inline f32x16 rotate_lanes(f32x16 v) {
  i32x16 from;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) from[i] = (i + Distance) % kLanes;
  return __builtin_shuffle(v, from);
}

// Always the same tree of additions.
inline float sum(f32x16 v) {
  v = v + rotate_lanes<8>(v);
  v = v + rotate_lanes<4>(v);
  v = v + rotate_lanes<2>(v);
  return (v + rotate_lanes<1>(v))[0];
}

inline float largest(f32x16 v) {
  v = maximum(v, rotate_lanes<8>(v));
  v = maximum(v, rotate_lanes<4>(v));
  v = maximum(v, rotate_lanes<2>(v));
  return maximum(v, rotate_lanes<1>(v))[0];
}

// 2^x by a degree-6 Taylor polynomial on [-0.5, 0.5] (relative error below 2e-7); 0 below -126, held at
// 2^127 above, NaN for NaN.
inline f32x16 exp2(f32x16 x) {
  const f32x16 clamped = minimum(broadcast(127.0f), maximum(broadcast(-126.0f), x));
  const f32x16 magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const f32x16 shifted = clamped + magic;
  const f32x16 whole = shifted - magic;
  const f32x16 f = clamped - whole;
  f32x16 p = broadcast(1.5403530e-4f);
  p = fma(p, f, broadcast(1.3333558e-3f));
  p = fma(p, f, broadcast(9.6181291e-3f));
  p = fma(p, f, broadcast(5.5504109e-2f));
  p = fma(p, f, broadcast(2.4022651e-1f));
  p = fma(p, f, broadcast(6.9314718e-1f));
  p = fma(p, f, broadcast(1.0f));
  const i32x16 exponent = ((i32x16)shifted - (i32x16)magic + 127) << 23;
  const f32x16 scaled = p * (f32x16)exponent;
  const i32x16 vanished = x < broadcast(-126.0f);
  return (f32x16)((i32x16)scaled & ~vanished);
}

constexpr float kLog2E = 1.44269504088896340736f;

inline f32x16 silu(f32x16 x) { return x / (broadcast(1.0f) + exp2(x * broadcast(-kLog2E))); }

inline void prefetch(const void* p, long bytes) {
  for (long i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 3);
}

}  // namespace gs
