// The Python module kernels._frames: arguments are checked, the GIL is released, and the arrays'
// device decides which implementation runs. Without a GPU, `stream` is ignored.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>

#include "arguments.h"
#include "frames_cpu.h"
#include "frames_cuda.h"
#include "rows.h"
#include "threads.h"

namespace {

using namespace medisseg;
namespace gpu = medisseg::cuda;

// All arrays on the CPU: null. All on one CUDA device: that device, made current.
std::unique_ptr<gpu::OnDevice> device_of(std::initializer_list<const View*> views) {
  const View& first = **views.begin();
  int device = -1;
  for (const View* view : views) {
    if (view->on_device != first.on_device) {
      view->wrong(std::string("the device of ") + first.name + ", " + first.describe());
    }
    if (!view->on_device) continue;
    const int its = gpu::device_of(view->data);
    if (device >= 0 && its != device) view->wrong("all arrays on one GPU");
    device = its;
  }
  return device < 0 ? nullptr : std::make_unique<gpu::OnDevice>(device);
}

gpu::Stream stream_from(uintptr_t stream) { return reinterpret_cast<gpu::Stream>(stream); }

void bind_preprocess(const py::object& frame, const py::object& chroma, const py::object& layout,
                     const py::object& matrix, const py::object& range, const py::object& content,
                     const py::object& scale, const py::object& bias, const py::object& out,
                     uintptr_t stream) {
  const View pixels = view_of(frame, "frame", "uint8");
  const View target = view_of(out, "out", "float32|float16");
  std::optional<View> second;
  if (!chroma.is_none()) second = view_of(chroma, "chroma", "uint8");
  const Frame source = frame_from(pixels, second ? &*second : nullptr, layout_from(layout));
  const YuvToRgb yuv = source.layout == Layout::NV12 ? matrix_from(matrix, range) : YuvToRgb{};
  const Input input = input_from(target);
  const Content where = content_from(content, input.height, input.width);
  const Normalisation normalisation = normalisation_from(scale, bias);
  const auto device = device_of({&pixels, &target, second ? &*second : &pixels});
  py::gil_scoped_release released;
  if (device) {
    gpu::preprocess(source, yuv, where, normalisation, input, stream_from(stream));
  } else {
    preprocess(source, yuv, where, normalisation, input);
  }
}

void bind_resize(const py::object& logits, const py::object& out, uintptr_t stream) {
  const View from = view_of(logits, "logits", "float32|float16");
  const View to = view_of(out, "out", "float32");
  const Logits source = logits_from(from);
  if (to.dimensions() != 3) to.wrong("[classes, height, width]");
  const int height = whole(py::int_(to.shape[1]), "height", 1, kLargestSide);
  const int width = whole(py::int_(to.shape[2]), "width", 1, kLargestSide);
  float* data = output_from(to, source.classes, height, width);
  const auto device = device_of({&from, &to});
  py::gil_scoped_release released;
  if (device) {
    gpu::resize(source, data, height, width, stream_from(stream));
  } else {
    resize(source, data, height, width);
  }
}

// On the CPU returns the area; on a GPU writes it to `area`, int32 [1], and returns nothing.
std::optional<int64_t> bind_postprocess(const py::object& logits, const py::object& threshold,
                                        const py::object& out, const py::object& area,
                                        uintptr_t stream) {
  const View from = view_of(logits, "logits", "float32|float16");
  const View to = view_of(out, "out", "uint8");
  const Logits source = logits_from(from);
  const MaskView mask = mask_from(to);
  uint8_t* data = writable_mask_from(to);
  constexpr double kMost = std::numeric_limits<float>::max();
  const float limit = static_cast<float>(real(threshold, "threshold's logit", -kMost, kMost));
  if (!from.on_device) {
    device_of({&from, &to});
    py::gil_scoped_release released;
    return postprocess(source, limit, data, mask.height, mask.width);
  }
  const View sum = view_of(area, "area", "int32");
  if (sum.dimensions() != 1 || sum.shape[0] != 1) sum.wrong("[1]");
  const auto device = device_of({&from, &to, &sum});
  py::gil_scoped_release released;
  gpu::postprocess(source, limit, data, mask.height, mask.width, static_cast<int*>(sum.data),
                   stream_from(stream));
  return std::nullopt;
}

void bind_outline(const py::object& mask, const py::object& thickness, const py::object& out,
                  uintptr_t stream) {
  const View from = view_of(mask, "mask", "uint8|bool"), to = view_of(out, "out", "uint8");
  const MaskView view = mask_from(from);
  uint8_t* data = writable_mask_from(to, view);
  const int pixels = whole(thickness, "thickness", 1, kThickestOutline);
  const auto device = device_of({&from, &to});
  py::gil_scoped_release released;
  if (device) {
    gpu::outline(view, pixels, data, stream_from(stream));
  } else {
    outline(view, pixels, data);
  }
}

void bind_overlay(const py::object& frame, const py::object& mask, const py::object& color,
                  const py::object& alpha, const py::object& thickness, uintptr_t stream) {
  const View pixels = view_of(frame, "frame", "uint8"), from = view_of(mask, "mask", "uint8|bool");
  const MaskView view = mask_from(from);
  const Frame target = writable_frame_from(pixels, view);
  uint8_t* data = static_cast<uint8_t*>(pixels.data);
  const Paint paint = paint_from(color, alpha, thickness);
  const auto device = device_of({&pixels, &from});
  py::gil_scoped_release released;
  if (device) {
    gpu::overlay(data, target.pitch, view, paint, stream_from(stream));
  } else {
    overlay(data, target.pitch, view, paint);
  }
}

MaskView cpu_mask_from(const py::object& mask) {
  const View view = view_of(mask, "mask", "uint8|bool");
  if (view.on_device) view.wrong("a mask on the CPU");
  return mask_from(view);
}

py::list bind_regions(const py::object& mask) {
  const MaskView view = cpu_mask_from(mask);
  std::vector<Region> found;
  {
    py::gil_scoped_release released;
    found = regions(view);
  }
  py::list out;
  for (const Region& r : found) out.append(py::make_tuple(r.x, r.y, r.width, r.height, r.area));
  return out;
}

std::vector<uint32_t> bind_encode_rle(const py::object& mask) {
  const MaskView view = cpu_mask_from(mask);
  py::gil_scoped_release released;
  return encode_rle(view);
}

void bind_decode_rle(const py::list& counts, const py::object& out) {
  const View to = view_of(out, "out", "uint8");
  if (to.on_device) to.wrong("a mask on the CPU");
  const MaskView mask = mask_from(to);
  uint8_t* data = writable_mask_from(to);
  const int64_t pixels = static_cast<int64_t>(mask.height) * mask.width;
  std::vector<uint32_t> runs;
  int64_t total = 0;
  for (const auto& count : counts) {
    const int run = whole(py::reinterpret_borrow<py::object>(count), "a run", 0,
                          kLargestSide * kLargestSide);
    runs.push_back(static_cast<uint32_t>(run));
    if ((total += run) > pixels) break;
  }
  if (total != pixels) to.wrong("as many pixels as the runs have, " + std::to_string(total));
  py::gil_scoped_release released;
  decode_rle(runs.data(), static_cast<int64_t>(runs.size()), data, mask.height, mask.width);
}

std::vector<std::string> instruction_sets() {
  const char* names[4];
  const int count = available_rows(names);
  return {names, names + count};
}

void use_instruction_set(const std::string& name) {
  if (!use_rows(name.c_str())) {
    throw py::value_error("'" + name.substr(0, 40) + "' is not an instruction set of this machine");
  }
}

void set_threads(const py::object& count) { set_thread_count(whole(count, "threads", 1, 1024)); }

}  // namespace

PYBIND11_MODULE(_frames, m) {
  m.doc() = "Compiled part of kernels.frames; _frames.pyi lists its functions.";
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init<uintptr_t, std::string, std::vector<int64_t>, std::vector<int64_t>,
                    py::object>())
      .def_readonly("owner", &DeviceArray::owner)
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape)); });
  m.def("preprocess", &bind_preprocess);
  m.def("resize", &bind_resize);
  m.def("postprocess", &bind_postprocess);
  m.def("outline", &bind_outline);
  m.def("overlay", &bind_overlay);
  m.def("regions", &bind_regions);
  m.def("encode_rle", &bind_encode_rle);
  m.def("decode_rle", &bind_decode_rle);
  m.def("cuda_architectures", &gpu::architectures);
  m.def("instruction_set", [] { return rows().name; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("threads", &thread_count);
  m.def("set_threads", &set_threads);
}
