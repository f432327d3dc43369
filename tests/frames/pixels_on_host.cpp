// Runs what each CUDA thread computes (kernels/csrc/pixels.h) in plain loops, for machines without a
// GPU: test_pixels.py compares it with the CPU path.
#include "pixels.h"

#include <algorithm>
#include <vector>

using namespace medisseg;

template <class Body>
static void each(int height, int width, const Body& body) {
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) body(y, x);
  }
}

extern "C" {

void preprocess(const uint8_t* pixels, int64_t pitch, const uint8_t* chroma, int64_t chroma_pitch,
                int height, int width, int layout, const int* content, const float* scale,
                const float* bias, void* out, int h, int w, int half) {
  const Frame frame{pixels, pitch, chroma, chroma_pitch, height, width,
                    static_cast<Layout>(layout)};
  const YuvToRgb yuv = yuv_to_rgb(0.2126, 0.0722, false);
  const Normalisation n{{scale[0], scale[1], scale[2]}, {bias[0], bias[1], bias[2]}};
  const Content where{content[0], content[1], content[2], content[3]};
  const Input input{out, h, w, half != 0};
  each(h, w, [&](int y, int x) { preprocess_at(y, x, frame, yuv, where, n, input); });
}

void postprocess(const void* logits, int half, int classes, int h, int w, float threshold,
                 uint8_t* mask, float* resized, int height, int width) {
  const Logits view{logits, half != 0, static_cast<int64_t>(h) * w, w, classes, h, w};
  each(height, width, [&](int y, int x) {
    mask[static_cast<int64_t>(y) * width + x] = class_at(y, x, view, threshold, height, width);
    resized[static_cast<int64_t>(y) * width + x] =
        resized_logit(view, 0, tap(y, h, height), tap(x, w, width));
  });
}

void draw(uint8_t* pixels, int64_t pitch, const uint8_t* mask, int height, int width,
          const uint8_t* color, int alpha, int thickness, uint8_t* edge) {
  const MaskView view{mask, height, width};
  const Paint paint{{color[0], color[1], color[2]}, alpha, thickness};
  std::vector<uint8_t> memory(tile_bytes(thickness));
  for (int top = 0; top < height; top += kTileHeight) {
    for (int left = 0; left < width; left += kTileWidth) {
      const Tile tile = tile_at(top, left, thickness, memory.data());
      load(tile, view, 0, 1);
      narrow(tile, 0, 1);
      each(std::min(kTileHeight, height - top), std::min(kTileWidth, width - left),
           [&](int row, int column) {
             const int y = top + row, x = left + column;
             if (mask[static_cast<int64_t>(y) * width + x] == 0) return;
             const bool outline = !covered(tile, y, x);
             overlay_at(y, x, pixels, pitch, paint, outline);
             edge[static_cast<int64_t>(y) * width + x] = outline;
           });
    }
  }
}

}  // extern "C"
