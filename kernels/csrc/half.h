// IEEE half to float32 and back (to nearest even), for whatever has no instruction for it.
#pragma once

#include <cstring>

#include "image.h"

namespace medisseg {

MEDISSEG_BOTH uint16_t half_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (bits < 0x38800000u) {  // subnormal: adding 1/2 lets the adder do shift and rounding
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

MEDISSEG_BOTH float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const bool special = magnitude >= 0x7c00u;  // infinity and NaN keep their payload
  uint32_t bits = (magnitude << 13) | (special ? 0x7f800000u : 0u);
  float value;
  memcpy(&value, &bits, sizeof value);
  if (!special) value *= 0x1p112f;  // the exponents' biases differ by 112; subnormals fall in place
  memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace medisseg
