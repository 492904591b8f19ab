// Four float64 side by side, in the vector types of GCC and Clang: plain loops over comparisons and minima are not turned
// into vector instructions without licence to reorder floating-point operations.
#pragma once

#include <cstdint>
#include <cstring>

// Vectors are returned by inlined functions only: their calling convention does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

// Compiles a function twice; the wider one runs where the processor has it. Neither fuses products: both give the same
// bits.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define MEDMO_WIDEST __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef MEDMO_WIDEST
#define MEDMO_WIDEST
#endif
#define MEDMO_INLINE [[gnu::always_inline]] inline

namespace medmo {

typedef double Lanes __attribute__((vector_size(32)));
constexpr int64_t kLanes = 4;

// Rows are padded to so many columns that loops of lanes have no rest.
inline int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

MEDMO_INLINE Lanes load(const double* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
MEDMO_INLINE void store(double* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof lanes); }
MEDMO_INLINE Lanes all(double value) { return Lanes{value, value, value, value}; }
MEDMO_INLINE Lanes smaller(const Lanes& a, const Lanes& b) { return a < b ? a : b; }
MEDMO_INLINE Lanes larger(const Lanes& a, const Lanes& b) { return a > b ? a : b; }
MEDMO_INLINE Lanes magnitude(const Lanes& a) { return a < 0.0 ? -a : a; }
MEDMO_INLINE double least(const Lanes& a) {
  const double low = a[0] < a[1] ? a[0] : a[1], high = a[2] < a[3] ? a[2] : a[3];
  return low < high ? low : high;
}

}  // namespace medmo
