// The frame functions on the CPU. Arguments are valid when they arrive: bindings.cpp checks them.
#pragma once

#include <vector>

#include "image.h"
#include "color.h"

namespace medisseg {

void preprocess(const Frame& frame, const YuvToRgb& yuv, const Content& content,
                const Normalisation& normalisation, const Input& input);

// out: float32 [classes, height, width], contiguous.
void resize(const Logits& logits, float* out, int height, int width);

// mask[y, x] = upsampled logit > threshold for one class, else the index of the greatest (the first
// among equals). Returns the number of pixels that are not 0.
int64_t postprocess(const Logits& logits, float threshold, uint8_t* mask, int height, int width);

// Pixels of the mask with background, or the frame's edge, within `thickness` rows and columns.
void outline(const MaskView& mask, int thickness, uint8_t* out);

// In place, into a packed frame of the mask's size.
void overlay(uint8_t* pixels, int64_t pitch, const MaskView& mask, const Paint& paint);

// A connected component (eight neighbours) of the pixels that are not 0.
struct Region {
  int x, y, width, height;
  int64_t area;
};
std::vector<Region> regions(const MaskView& mask);  // largest first

// Run lengths in column order, the background's first (COCO's uncompressed form), and back.
std::vector<uint32_t> encode_rle(const MaskView& mask);
void decode_rle(const uint32_t* counts, int64_t runs, uint8_t* mask, int height, int width);

}  // namespace medisseg
