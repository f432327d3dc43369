// One thread for each output pixel; pixels.h says what it computes.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "frames_cuda.h"
#include "pixels.h"

namespace medisseg::cuda {
namespace {

constexpr int kBlockWidth = kTileWidth, kBlockHeight = kTileHeight;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it, so the next call does not report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

dim3 block() { return {kBlockWidth, kBlockHeight, 1}; }

dim3 grid(int height, int width, int planes = 1) {
  return dim3((width + kBlockWidth - 1) / kBlockWidth, (height + kBlockHeight - 1) / kBlockHeight,
              planes);
}

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream); }

__device__ int row() { return blockIdx.y * kBlockHeight + threadIdx.y; }
__device__ int column() { return blockIdx.x * kBlockWidth + threadIdx.x; }

__global__ void preprocess_kernel(Frame frame, YuvToRgb yuv, Content content,
                                  Normalisation normalisation, Input input) {
  if (row() >= input.height || column() >= input.width) return;
  preprocess_at(row(), column(), frame, yuv, content, normalisation, input);
}

__global__ void resize_kernel(Logits logits, float* out, int height, int width) {
  if (row() >= height || column() >= width) return;
  const int plane = blockIdx.z;
  out[(static_cast<int64_t>(plane) * height + row()) * width + column()] =
      resized_logit(logits, plane, tap(row(), logits.height, height),
                    tap(column(), logits.width, width));
}

__global__ void postprocess_kernel(Logits logits, float threshold, uint8_t* mask, int height,
                                   int width, int* area) {
  const bool inside = row() < height && column() < width;
  uint8_t index = 0;
  if (inside) {
    index = class_at(row(), column(), logits, threshold, height, width);
    mask[static_cast<int64_t>(row()) * width + column()] = index;
  }
  // One addition a block, and none where it has no pixel of the mask: all go to one address.
  const int ones = __syncthreads_count(inside && index != 0);
  if (threadIdx.x == 0 && threadIdx.y == 0 && ones != 0) atomicAdd(area, ones);
}

// Whether this thread's pixel is in the mask, and on its outline. All threads of a block call it.
struct Drawn {
  bool inside, outline;
};

__device__ Drawn drawn(const MaskView& mask, int thickness) {
  extern __shared__ uint8_t memory[];
  const bool inside = row() < mask.height && column() < mask.width &&
                      mask.data[static_cast<int64_t>(row()) * mask.width + column()] != 0;
  if (!__syncthreads_or(inside)) return {false, false};
  const Tile tile =
      tile_at(blockIdx.y * kBlockHeight, blockIdx.x * kBlockWidth, thickness, memory);
  const int index = threadIdx.y * kBlockWidth + threadIdx.x, count = kBlockWidth * kBlockHeight;
  load(tile, mask, index, count);
  __syncthreads();
  narrow(tile, index, count);
  __syncthreads();
  return {inside, inside && !covered(tile, row(), column())};
}

__global__ void outline_kernel(MaskView mask, int thickness, uint8_t* out) {
  const Drawn here = drawn(mask, thickness);
  if (row() >= mask.height || column() >= mask.width) return;
  out[static_cast<int64_t>(row()) * mask.width + column()] = here.outline;
}

__global__ void overlay_kernel(uint8_t* pixels, int64_t pitch, MaskView mask, Paint paint) {
  const Drawn here = drawn(mask, paint.thickness);
  if (here.inside) overlay_at(row(), column(), pixels, pitch, paint, here.outline);
}

}  // namespace

const char* architectures() { return MEDISSEG_ARCHITECTURES; }

int device_of(const void* pointer) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer), "no CUDA device can be used");
  if (attributes.devicePointer == nullptr) {
    throw std::invalid_argument("the pointer is not memory that a CUDA device can read");
  }
  return attributes.device;
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  changed_ = before_ != device;
  if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
}

// Since CUDA 12 cudaSetDevice makes a context, of some 500 MiB: never without need.
OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);
}

void preprocess(const Frame& frame, const YuvToRgb& yuv, const Content& content,
                const Normalisation& normalisation, const Input& input, Stream stream) {
  preprocess_kernel<<<grid(input.height, input.width), block(), 0, handle(stream)>>>(
      frame, yuv, content, normalisation, input);
  check(cudaGetLastError(), "preprocess");
}

void resize(const Logits& logits, float* out, int height, int width, Stream stream) {
  resize_kernel<<<grid(height, width, logits.classes), block(), 0, handle(stream)>>>(
      logits, out, height, width);
  check(cudaGetLastError(), "resize");
}

void postprocess(const Logits& logits, float threshold, uint8_t* mask, int height, int width,
                 int* area, Stream stream) {
  check(cudaMemsetAsync(area, 0, sizeof *area, handle(stream)), "postprocess");
  postprocess_kernel<<<grid(height, width), block(), 0, handle(stream)>>>(
      logits, threshold, mask, height, width, area);
  check(cudaGetLastError(), "postprocess");
}

void outline(const MaskView& mask, int thickness, uint8_t* out, Stream stream) {
  outline_kernel<<<grid(mask.height, mask.width), block(), tile_bytes(thickness),
                   handle(stream)>>>(mask, thickness, out);
  check(cudaGetLastError(), "outline");
}

void overlay(uint8_t* pixels, int64_t pitch, const MaskView& mask, const Paint& paint,
             Stream stream) {
  overlay_kernel<<<grid(mask.height, mask.width), block(), tile_bytes(paint.thickness),
                   handle(stream)>>>(pixels, pitch, mask, paint);
  check(cudaGetLastError(), "overlay");
}

}  // namespace medisseg::cuda
