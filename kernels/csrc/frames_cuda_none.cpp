// Stands in for frames_cuda.cu where the extension is built without CUDA.
#include <stdexcept>

#include "frames_cuda.h"

namespace medisseg::cuda {
namespace {

[[noreturn]] void absent() {
  throw std::runtime_error(
      "the frame extension was built without CUDA; install the CUDA toolkit, then: "
      "MEDISSEG_CUDA=1 pip install -e . --no-build-isolation");
}

}  // namespace

const char* architectures() { return ""; }
int device_of(const void*) { absent(); }
OnDevice::OnDevice(int) { absent(); }
OnDevice::~OnDevice() = default;
void preprocess(const Frame&, const YuvToRgb&, const Content&, const Normalisation&, const Input&,
                Stream) {
  absent();
}
void resize(const Logits&, float*, int, int, Stream) { absent(); }
void postprocess(const Logits&, float, uint8_t*, int, int, int*, Stream) { absent(); }
void outline(const MaskView&, int, uint8_t*, Stream) { absent(); }
void overlay(uint8_t*, int64_t, const MaskView&, const Paint&, Stream) { absent(); }

}  // namespace medisseg::cuda
