// One pixel of the network's input from a frame: the definition that the scalar path and the CUDA
// kernel run, and that the SIMD rows (rows_body.h) repeat operation by operation.
#pragma once

#include "axis.h"
#include "color.h"

namespace medisseg {

struct Rgb {
  float r, g, b;
};

MEDISSEG_BOTH float clamp_byte(float value) {
  const float low = value > 0.0f ? value : 0.0f;  // in this form no branch is compiled
  return low < 255.0f ? low : 255.0f;
}

MEDISSEG_BOTH Rgb pixel(const Frame& frame, const YuvToRgb& yuv, int y, int x) {
  if (frame.layout == Layout::NV12) {
    // Chroma is replicated over its 2 x 2 luma pixels, as decoders' own converters do.
    const uint8_t* uv = frame.chroma + (y / 2) * frame.chroma_pitch + (x & ~1);
    const float l = (static_cast<float>(frame.pixels[y * frame.pitch + x]) - yuv.offset) * yuv.luma;
    const float u = static_cast<float>(uv[0]) - 128.0f;
    const float v = static_cast<float>(uv[1]) - 128.0f;
    return {clamp_byte(l + yuv.red_v * v), clamp_byte(l + yuv.green_u * u + yuv.green_v * v),
            clamp_byte(l + yuv.blue_u * u)};
  }
  const uint8_t* p = frame.pixels + y * frame.pitch + 3 * x;
  const float first = p[0], second = p[1], third = p[2];
  return frame.layout == Layout::RGB ? Rgb{first, second, third} : Rgb{third, second, first};
}

MEDISSEG_BOTH Rgb mix(const Rgb& a, const Rgb& b, float weight) {
  return {mix(a.r, b.r, weight), mix(a.g, b.g, weight), mix(a.b, b.b, weight)};
}

MEDISSEG_BOTH Rgb sample(const Frame& frame, const YuvToRgb& yuv, const Tap& y, const Tap& x) {
  const Rgb top = mix(pixel(frame, yuv, y.first, x.first), pixel(frame, yuv, y.first, x.second), x.weight);
  const Rgb bottom = mix(pixel(frame, yuv, y.second, x.first), pixel(frame, yuv, y.second, x.second), x.weight);
  return mix(top, bottom, y.weight);
}

}  // namespace medisseg
