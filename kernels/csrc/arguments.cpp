#include "arguments.h"

#include <cmath>
#include <cstdio>

namespace medisseg {
namespace {

const std::string kSides = "sides of 1 to " + std::to_string(kLargestSide) + " pixels";
const char* const kRemedy = "; pass a contiguous copy (numpy.ascontiguousarray, tensor.contiguous)";

[[noreturn]] void wrong(const char* name, const py::handle& got, const std::string& expected) {
  throw py::value_error(std::string(name) + " is " + describe(got) + "; expected " + expected);
}

[[noreturn]] void wrong_type(const char* name, const py::handle& got, const std::string& expected) {
  throw py::type_error(std::string(name) + " is " + describe(got) + "; expected " + expected);
}

std::string text_from(const py::object& value, const char* name) {
  if (!py::isinstance<py::str>(value)) wrong_type(name, value, "a string");
  return value.cast<std::string>();
}

py::tuple tuple_from(const py::object& value, const char* name, size_t count) {
  if (!py::isinstance<py::tuple>(value) || py::len(value) != count) {
    wrong_type(name, value, "a tuple of " + std::to_string(count));
  }
  return value;
}

std::string number(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%g", value);
  return buffer;
}

void check_sides(const View& view, int axis) {
  for (int i = axis; i < axis + 2; ++i) {
    if (view.shape[i] < 1 || view.shape[i] > kLargestSide) view.wrong(kSides);
  }
}

// Rows forward in memory, one behind the other; returns the pitch.
int64_t pitch_of(const View& view, int64_t row_bytes) {
  if (view.shape[0] == 1) return row_bytes;
  if (view.strides[0] < row_bytes) {
    view.wrong(std::string("rows that follow one another") + kRemedy);
  }
  return view.strides[0];
}

Frame packed_frame(const View& view, Layout layout) {
  if (view.dimensions() != 3 || view.shape[2] != 3) view.wrong("uint8 [height, width, 3]");
  check_sides(view, 0);
  if (!view.stride_is(2, 1) || !view.stride_is(1, 3)) {
    view.wrong(std::string("packed pixels, strides (pitch, 3, 1)") + kRemedy);
  }
  Frame frame;
  frame.pixels = static_cast<const uint8_t*>(view.data);
  frame.pitch = pitch_of(view, 3 * view.shape[1]);
  frame.height = static_cast<int>(view.shape[0]);
  frame.width = static_cast<int>(view.shape[1]);
  frame.layout = layout;
  return frame;
}

void check_plane(const View& view, const std::string& expected) {
  if (view.dimensions() != 2) view.wrong(expected);
  if (view.shape[0] < 1 || view.shape[1] < 1 || view.shape[0] > 3 * (kLargestSide / 2) ||
      view.shape[1] > kLargestSide) {
    view.wrong(kSides);
  }
  if (!view.stride_is(1, 1)) view.wrong(std::string("bytes side by side in a row") + kRemedy);
}

Frame nv12_frame(const View& view, const View* chroma) {
  const std::string expected = chroma != nullptr
                                   ? "NV12 luma, uint8 [height, width], both even"
                                   : "NV12, uint8 [height * 3 / 2, width], both even";
  check_plane(view, expected);
  const int64_t height = chroma != nullptr ? view.shape[0] : view.shape[0] / 3 * 2;
  const bool whole_planes = chroma != nullptr || view.shape[0] % 3 == 0;
  if (!whole_planes || height % 2 || view.shape[1] % 2 || height > kLargestSide) {
    view.wrong(expected);
  }
  Frame frame;
  frame.pixels = static_cast<const uint8_t*>(view.data);
  frame.pitch = pitch_of(view, view.shape[1]);
  frame.height = static_cast<int>(height);
  frame.width = static_cast<int>(view.shape[1]);
  frame.layout = Layout::NV12;
  frame.chroma = frame.pixels + height * frame.pitch;
  frame.chroma_pitch = frame.pitch;
  if (chroma != nullptr) {
    check_plane(*chroma, "uint8 [height / 2, width]");
    if (chroma->shape[0] * 2 != height || chroma->shape[1] != view.shape[1]) {
      chroma->wrong("[height / 2, width] of luma " + view.describe());
    }
    frame.chroma = static_cast<const uint8_t*>(chroma->data);
    frame.chroma_pitch = pitch_of(*chroma, chroma->shape[1]);
  }
  return frame;
}

}  // namespace

Layout layout_from(const py::object& name) {
  const std::string text = text_from(name, "layout");
  if (text == "RGB") return Layout::RGB;
  if (text == "BGR") return Layout::BGR;
  if (text == "NV12") return Layout::NV12;
  wrong("layout", name, "RGB, BGR or NV12");
}

YuvToRgb matrix_from(const py::object& name, const py::object& range) {
  const std::string matrix = text_from(name, "matrix"), values = text_from(range, "value_range");
  if (values != "limited" && values != "full") wrong("value_range", range, "limited or full");
  if (matrix == "BT.601") return yuv_to_rgb(0.299, 0.114, values == "full");
  if (matrix == "BT.709") return yuv_to_rgb(0.2126, 0.0722, values == "full");
  wrong("matrix", name, "BT.601 or BT.709");
}

Frame frame_from(const View& view, const View* chroma, Layout layout) {
  if (layout == Layout::NV12) return nv12_frame(view, chroma);
  if (chroma != nullptr) chroma->wrong("None, unless the layout is NV12");
  return packed_frame(view, layout);
}

Input input_from(const View& view) {
  const int lead = view.dimensions() - 3;
  if (lead < 0 || lead > 1 || view.shape[lead] != 3 || (lead == 1 && view.shape[0] != 1)) {
    view.wrong("[3, height, width] or [1, 3, height, width]");
  }
  check_sides(view, lead + 1);
  if (!view.contiguous() || !view.writable) view.wrong("a contiguous, writable array");
  return {view.data, static_cast<int>(view.shape[lead + 1]), static_cast<int>(view.shape[lead + 2]),
          view.item_size() == 2};
}

int whole(const py::object& value, const char* name, int least, int most) {
  const std::string expected =
      "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  if (!PyLong_Check(value.ptr()) && !PyIndex_Check(value.ptr())) wrong_type(name, value, expected);
  const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!integer) throw py::error_already_set();
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
  if (overflow || result < least || result > most) wrong(name, value, expected);
  return static_cast<int>(result);
}

double real(const py::object& value, const char* name, double least, double most) {
  const std::string expected = "a number from " + number(least) + " to " + number(most);
  if (!PyNumber_Check(value.ptr())) wrong_type(name, value, expected);
  const double result = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    wrong_type(name, value, expected);
  }
  if (!(result >= least && result <= most)) wrong(name, value, expected);
  return result;
}

Content content_from(const py::object& four, int height, int width) {
  const py::tuple t = tuple_from(four, "content", 4);
  Content content;
  content.top = whole(t[0], "content's top", 0, height - 1);
  content.left = whole(t[1], "content's left", 0, width - 1);
  content.height = whole(t[2], "content's height", 1, height - content.top);
  content.width = whole(t[3], "content's width", 1, width - content.left);
  return content;
}

Normalisation normalisation_from(const py::object& scale, const py::object& bias) {
  const py::tuple factors = tuple_from(scale, "1 / std", 3), terms = tuple_from(bias, "mean", 3);
  Normalisation n{};
  for (int c = 0; c < 3; ++c) {
    n.scale[c] = static_cast<float>(real(factors[c], "1 / std", -1e30, 1e30));
    n.bias[c] = static_cast<float>(real(terms[c], "mean / std", -1e30, 1e30));
  }
  return n;
}

Logits logits_from(const View& view) {
  if (view.dimensions() != 3 || view.shape[0] < 1 || view.shape[0] > kMostClasses) {
    view.wrong("[classes, height, width] with 1 to 255 classes");
  }
  check_sides(view, 1);
  const int64_t size = view.item_size();
  if (size == 2 && !view.on_device) view.wrong("float32");
  for (int axis = 0; axis < 2; ++axis) {
    if (view.shape[axis] > 1 && view.strides[axis] % size != 0) view.wrong("whole elements");
  }
  if (!view.stride_is(2, size)) view.wrong(std::string("columns side by side") + kRemedy);
  return {view.data,
          size == 2,
          view.shape[0] > 1 ? view.strides[0] / size : 0,
          view.shape[1] > 1 ? view.strides[1] / size : 0,
          static_cast<int>(view.shape[0]),
          static_cast<int>(view.shape[1]),
          static_cast<int>(view.shape[2])};
}

float* output_from(const View& view, int planes, int height, int width) {
  const std::vector<int64_t> shape{planes, height, width};
  if (view.shape != shape || !view.contiguous() || !view.writable) {
    view.wrong("a contiguous, writable array of the size asked for");
  }
  return static_cast<float*>(view.data);
}

MaskView mask_from(const View& view) {
  if (view.dimensions() != 2) view.wrong("[height, width]");
  check_sides(view, 0);
  if (!view.contiguous()) view.wrong(std::string("a contiguous array") + kRemedy);
  return {static_cast<const uint8_t*>(view.data), static_cast<int>(view.shape[0]),
          static_cast<int>(view.shape[1])};
}

uint8_t* writable_mask_from(const View& view) {
  mask_from(view);
  if (!view.writable) view.wrong("a writable array");
  return static_cast<uint8_t*>(view.data);
}

uint8_t* writable_mask_from(const View& view, const MaskView& like) {
  uint8_t* data = writable_mask_from(view);
  if (view.shape[0] != like.height || view.shape[1] != like.width) {
    view.wrong("[" + std::to_string(like.height) + ", " + std::to_string(like.width) + "]");
  }
  return data;
}

Frame writable_frame_from(const View& view, const MaskView& like) {
  const Frame frame = packed_frame(view, Layout::RGB);
  if (frame.height != like.height || frame.width != like.width) {
    view.wrong("the mask's size, [" + std::to_string(like.height) + ", " +
               std::to_string(like.width) + ", 3]");
  }
  if (!view.writable) view.wrong("a writable array; pass a copy");
  return frame;
}

Paint paint_from(const py::object& color, const py::object& alpha, const py::object& thickness) {
  const py::tuple three = tuple_from(color, "color", 3);
  Paint paint{};
  for (int c = 0; c < 3; ++c) paint.color[c] = static_cast<uint8_t>(whole(three[c], "color", 0, 255));
  paint.alpha = static_cast<int>(std::lround(real(alpha, "alpha", 0.0, 1.0) * 256.0));
  paint.thickness = whole(thickness, "outline", 0, kThickestOutline);
  return paint;
}

}  // namespace medisseg
