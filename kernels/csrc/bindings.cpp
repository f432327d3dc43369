// The Python module kernels._frames: arguments are checked, then the GIL is released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>

#include "arguments.h"
#include "frames_cpu.h"
#include "rows.h"
#include "threads.h"

namespace py = pybind11;
using namespace medisseg;

namespace {

void bind_preprocess(const py::object& frame, const py::object& chroma, const std::string& layout,
                     const std::string& matrix, const std::string& range,
                     const py::object& content, const py::object& scale, const py::object& bias,
                     const py::object& out) {
  const Frame source = frame_from(frame, chroma, layout_from(layout));
  const YuvToRgb yuv = source.layout == Layout::NV12 ? matrix_from(matrix, range) : YuvToRgb{};
  const Input input = input_from(out);
  const Content where = content_from(content, input.height, input.width);
  const Normalisation normalisation = normalisation_from(scale, bias);
  py::gil_scoped_release released;
  preprocess(source, yuv, where, normalisation, input);
}

py::array_t<float> bind_resize(const py::object& logits, const py::object& height,
                               const py::object& width) {
  const Logits source = logits_from(logits);
  const int rows = whole(height, "height", 1, kLargestSide);
  const int columns = whole(width, "width", 1, kLargestSide);
  py::array_t<float> out({source.classes, rows, columns});
  float* data = out.mutable_data();
  py::gil_scoped_release released;
  resize(source, data, rows, columns);
  return out;
}

int64_t bind_postprocess(const py::object& logits, double threshold, const py::object& out) {
  const Logits source = logits_from(logits);
  if (std::isnan(threshold)) throw py::value_error("threshold is NaN; expected a logit");
  const MaskView mask = mask_from(out, "out");
  uint8_t* data = writable_mask_from(out, "out", mask.height, mask.width);
  py::gil_scoped_release released;
  return postprocess(source, static_cast<float>(threshold), data, mask.height, mask.width);
}

py::array_t<uint8_t> bind_outline(const py::object& mask, const py::object& thickness) {
  const MaskView view = mask_from(mask, "mask");
  const int pixels = whole(thickness, "thickness", 1, kLargestSide);
  py::array_t<uint8_t> out({view.height, view.width});
  uint8_t* data = out.mutable_data();
  py::gil_scoped_release released;
  outline(view, pixels, data);
  return out;
}

void bind_overlay(const py::object& frame, const py::object& mask, const py::object& color,
                  double alpha, const py::object& thickness) {
  const MaskView view = mask_from(mask, "mask");
  int64_t pitch = 0;
  uint8_t* pixels = writable_frame_from(frame, view, pitch);
  uint8_t paint[3];
  color_from(color, paint);
  if (!(alpha >= 0.0 && alpha <= 1.0)) {
    throw py::value_error("alpha is " + std::to_string(alpha) + "; expected 0 to 1");
  }
  const int border = whole(thickness, "outline", 0, kLargestSide);
  py::gil_scoped_release released;
  overlay(pixels, pitch, view, paint, static_cast<int>(std::lround(alpha * 256.0)), border);
}

py::list bind_regions(const py::object& mask) {
  const MaskView view = mask_from(mask, "mask");
  std::vector<Region> found;
  {
    py::gil_scoped_release released;
    found = regions(view);
  }
  py::list out;
  for (const Region& r : found) out.append(py::make_tuple(r.x, r.y, r.width, r.height, r.area));
  return out;
}

py::list bind_encode_rle(const py::object& mask) {
  const MaskView view = mask_from(mask, "mask");
  std::vector<uint32_t> counts;
  {
    py::gil_scoped_release released;
    counts = encode_rle(view);
  }
  py::list out;
  for (const uint32_t count : counts) out.append(count);
  return out;
}

py::array_t<uint8_t> bind_decode_rle(const py::sequence& counts, const py::object& height,
                                     const py::object& width) {
  const int rows = whole(height, "height", 1, kLargestSide);
  const int columns = whole(width, "width", 1, kLargestSide);
  const int64_t pixels = static_cast<int64_t>(rows) * columns;
  std::vector<uint32_t> runs;
  int64_t total = 0;
  for (const auto& count : counts) {
    const int run = whole(py::reinterpret_borrow<py::object>(count), "run", 0,
                          kLargestSide * kLargestSide);
    runs.push_back(static_cast<uint32_t>(run));
    if ((total += run) > pixels) break;
  }
  if (total != pixels) {
    throw py::value_error("the runs do not add up to " + std::to_string(pixels) +
                          " pixels, the size's height * width");
  }
  py::array_t<uint8_t> out({rows, columns});
  uint8_t* data = out.mutable_data();
  py::gil_scoped_release released;
  decode_rle(runs.data(), static_cast<int64_t>(runs.size()), data, rows, columns);
  return out;
}

py::list instruction_sets() {
  const char* names[4];
  const int count = available_rows(names);
  py::list out;
  for (int i = 0; i < count; ++i) out.append(names[i]);
  return out;
}

void use_instruction_set(const std::string& name) {
  if (!use_rows(name.c_str())) {
    throw py::value_error("'" + name.substr(0, 40) + "' is not an instruction set of this machine");
  }
}

void set_threads(const py::object& count) { set_thread_count(whole(count, "threads", 1, 1024)); }

}  // namespace

PYBIND11_MODULE(_frames, m) {
  m.doc() = "Compiled part of kernels.frames.";
  m.attr("largest_side") = kLargestSide;
  m.def("preprocess", &bind_preprocess);
  m.def("resize", &bind_resize);
  m.def("postprocess", &bind_postprocess);
  m.def("outline", &bind_outline);
  m.def("overlay", &bind_overlay);
  m.def("regions", &bind_regions);
  m.def("encode_rle", &bind_encode_rle);
  m.def("decode_rle", &bind_decode_rle);
  m.def("instruction_set", [] { return rows().name; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("threads", &thread_count);
  m.def("set_threads", &set_threads);
}
