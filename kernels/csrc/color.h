// Y'CbCr to R'G'B' with explicit matrix and range (ITU-R BT.601-7 and BT.709-6, 8 bits).
#pragma once

#include "image.h"

namespace medisseg {

// r = luma * (Y - offset) + red_v * (V - 128), and so on; the result is clamped to [0, 255].
struct YuvToRgb {
  float offset;
  float luma;
  float red_v;
  float green_u;
  float green_v;
  float blue_u;
};

// kr and kb are the matrix's luma weights of red and blue: 0.299, 0.114 or 0.2126, 0.0722.
inline YuvToRgb yuv_to_rgb(double kr, double kb, bool full_range) {
  const double luma = full_range ? 1.0 : 255.0 / 219.0;
  const double chroma = full_range ? 1.0 : 255.0 / 224.0;
  const double kg = 1.0 - kr - kb;
  return {full_range ? 0.0f : 16.0f,
          static_cast<float>(luma),
          static_cast<float>(2.0 * (1.0 - kr) * chroma),
          static_cast<float>(-2.0 * (1.0 - kb) * kb / kg * chroma),
          static_cast<float>(-2.0 * (1.0 - kr) * kr / kg * chroma),
          static_cast<float>(2.0 * (1.0 - kb) * chroma)};
}

}  // namespace medisseg
