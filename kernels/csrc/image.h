// The views that every function of the extension takes: they own nothing and are checked once, in
// bindings.cpp, before any code below reads through them.
#pragma once

#include <cstdint>

// Static, so that no copy compiled for a newer processor (rows_avx2.cpp) is shared with the others.
#ifdef __CUDACC__
#define MEDISSEG_BOTH static __host__ __device__ inline
#else
#define MEDISSEG_BOTH static inline
#endif

namespace medisseg {

// Sides up to here keep the half-pixel arithmetic (axis.h) and byte offsets in 32 bits.
constexpr int kLargestSide = 16384;
constexpr int kMostClasses = 255;   // class indices are uint8
constexpr int kThickestOutline = 64;  // pixels

enum class Layout { RGB, BGR, NV12 };

// A uint8 frame. Packed layouts: rows of 3 * width bytes. NV12: `pixels` is the luma plane, `chroma`
// the interleaved U, V plane at half the height and width. Pitches are bytes from row to row.
struct Frame {
  const uint8_t* pixels = nullptr;
  int64_t pitch = 0;
  const uint8_t* chroma = nullptr;
  int64_t chroma_pitch = 0;
  int height = 0;
  int width = 0;
  Layout layout = Layout::RGB;
};

// Where the resized frame lies within the network's input; zeros around it.
struct Content {
  int top = 0;
  int left = 0;
  int height = 0;
  int width = 0;
};

// The network's input: three contiguous planes, red first, of float32 or IEEE half.
struct Input {
  void* data = nullptr;
  int height = 0;
  int width = 0;
  bool half = false;
};

// value = byte * scale + bias, a channel each.
struct Normalisation {
  float scale[3];
  float bias[3];
};

// Logits [classes, height, width] of float32, or (CUDA only) IEEE half; strides in elements, columns
// adjacent.
struct Logits {
  const void* data = nullptr;
  bool half = false;
  int64_t plane_stride = 0;
  int64_t row_stride = 0;
  int classes = 0;
  int height = 0;
  int width = 0;
};

// A uint8 mask [height, width], contiguous: class indices, 0 is background.
struct MaskView {
  const uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
};

// What is painted where the mask is not 0: alpha / 256 of a colour in the frame's channel order, and
// all of it within `thickness` pixels of the background.
struct Paint {
  uint8_t color[3];
  int alpha;
  int thickness;
};

}  // namespace medisseg
