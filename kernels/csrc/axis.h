// The resampling rule, the same on CPU and GPU: bilinear, half-pixel centres, edges clamped, no
// antialiasing; torch.nn.functional.interpolate(mode="bilinear", align_corners=False) and OpenCV's
// INTER_LINEAR define it likewise.
#pragma once

#include "image.h"

namespace medisseg {

// One output position: (1 - weight) * source[first] + weight * source[second].
struct Tap {
  int first;
  int second;
  float weight;
};

// Integers until the last division, so every device and instruction set finds the same tap:
// source = (position + 1/2) * from / to - 1/2 = ((2 position + 1) from - to) / (2 to).
MEDISSEG_BOTH Tap tap(int position, int from, int to) {
  const int numerator = (2 * position + 1) * from - to;
  if (numerator <= 0) return {0, 0, 0.0f};
  const int first = numerator / (2 * to);
  if (first >= from - 1) return {from - 1, from - 1, 0.0f};
  return {first, first + 1, static_cast<float>(numerator % (2 * to)) / static_cast<float>(2 * to)};
}

MEDISSEG_BOTH float mix(float a, float b, float weight) { return a + (b - a) * weight; }

}  // namespace medisseg
