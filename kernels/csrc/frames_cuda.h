// The frame functions on CUDA: device pointers, one launch each on the caller's stream, nothing
// allocated and nothing waited for. Without nvcc frames_cuda_none.cpp stands in.
#pragma once

#include "color.h"
#include "image.h"

namespace medisseg::cuda {

using Stream = void*;  // a cudaStream_t

// "87 89 90 120 ptx75", or "" where the extension was built without CUDA.
const char* architectures();

// The device that a pointer belongs to; throws std::invalid_argument if a GPU cannot read it.
int device_of(const void* pointer);

// Makes a device current and, if that changed anything, the former one again.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

void preprocess(const Frame& frame, const YuvToRgb& yuv, const Content& content,
                const Normalisation& normalisation, const Input& input, Stream stream);
void resize(const Logits& logits, float* out, int height, int width, Stream stream);
// area: one int32 on the device, set to the number of pixels that are not 0.
void postprocess(const Logits& logits, float threshold, uint8_t* mask, int height, int width,
                 int* area, Stream stream);
void outline(const MaskView& mask, int thickness, uint8_t* out, Stream stream);
void overlay(uint8_t* pixels, int64_t pitch, const MaskView& mask, const Paint& paint,
             Stream stream);

}  // namespace medisseg::cuda
