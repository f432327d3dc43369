// One output pixel of every function, as the CUDA kernels compute it. Plain C++, so a test runs the
// same lines on a machine without a GPU; the CPU's row loops give the same bits.
#pragma once

#include "half.h"
#include "sample.h"
#include "tile.h"

namespace medisseg {

MEDISSEG_BOTH void put(const Input& input, int plane, int y, int x, float value) {
  const int64_t index = (static_cast<int64_t>(plane) * input.height + y) * input.width + x;
  if (input.half) {
    static_cast<uint16_t*>(input.data)[index] = half_from_float(value);
  } else {
    static_cast<float*>(input.data)[index] = value;
  }
}

MEDISSEG_BOTH void preprocess_at(int y, int x, const Frame& frame, const YuvToRgb& yuv,
                                 const Content& content, const Normalisation& n,
                                 const Input& input) {
  const int row = y - content.top, column = x - content.left;
  if (row < 0 || row >= content.height || column < 0 || column >= content.width) {
    for (int plane = 0; plane < 3; ++plane) put(input, plane, y, x, 0.0f);
    return;
  }
  const Rgb rgb = sample(frame, yuv, tap(row, frame.height, content.height),
                         tap(column, frame.width, content.width));
  put(input, 0, y, x, rgb.r * n.scale[0] + n.bias[0]);
  put(input, 1, y, x, rgb.g * n.scale[1] + n.bias[1]);
  put(input, 2, y, x, rgb.b * n.scale[2] + n.bias[2]);
}

MEDISSEG_BOTH float logit(const Logits& logits, int plane, int y, int x) {
  const int64_t index = plane * logits.plane_stride + y * logits.row_stride + x;
  return logits.half ? float_from_half(static_cast<const uint16_t*>(logits.data)[index])
                     : static_cast<const float*>(logits.data)[index];
}

MEDISSEG_BOTH float resized_logit(const Logits& logits, int plane, const Tap& y, const Tap& x) {
  const float top = mix(logit(logits, plane, y.first, x.first),
                        logit(logits, plane, y.first, x.second), x.weight);
  const float bottom = mix(logit(logits, plane, y.second, x.first),
                           logit(logits, plane, y.second, x.second), x.weight);
  return mix(top, bottom, y.weight);
}

// The class of one pixel of a mask [height, width].
MEDISSEG_BOTH uint8_t class_at(int y, int x, const Logits& logits, float threshold, int height,
                               int width) {
  const Tap down = tap(y, logits.height, height), across = tap(x, logits.width, width);
  float best = resized_logit(logits, 0, down, across);
  if (logits.classes == 1) return best > threshold ? 1 : 0;
  int index = 0;
  for (int plane = 1; plane < logits.classes; ++plane) {
    const float value = resized_logit(logits, plane, down, across);
    if (value > best) {
      best = value;
      index = plane;
    }
  }
  return static_cast<uint8_t>(index);
}

// A pixel of the mask takes the colour: opaque on the outline, blended within it.
MEDISSEG_BOTH void overlay_at(int y, int x, uint8_t* pixels, int64_t pitch, const Paint& paint,
                              bool outline) {
  uint8_t* p = pixels + y * pitch + 3 * x;
  for (int c = 0; c < 3; ++c) {
    const int blended = (p[c] * (256 - paint.alpha) + paint.color[c] * paint.alpha + 128) >> 8;
    p[c] = outline ? paint.color[c] : static_cast<uint8_t>(blended);
  }
}

}  // namespace medisseg
