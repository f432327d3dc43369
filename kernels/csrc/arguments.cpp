#include "arguments.h"

#include <cmath>

namespace medisseg {
namespace {

std::string tuple_text(const py::ssize_t* values, py::ssize_t count) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + ")";
}

[[noreturn]] void wrong_type(const char* name, const py::handle& got, const std::string& expected) {
  throw py::type_error(std::string(name) + " is " + describe(got) + "; expected " + expected);
}

[[noreturn]] void wrong(const char* name, const py::handle& got, const std::string& expected) {
  throw py::value_error(std::string(name) + " is " + describe(got) + "; expected " + expected);
}

// The array's sides that hold more than one element decide about strides; others may say anything.
bool stride_is(const py::array& a, int axis, int64_t bytes) {
  return a.shape(axis) == 1 || a.strides(axis) == bytes;
}

py::array array_of(const py::object& object, const char* name, const char* kinds,
                   const std::string& expected) {
  if (!py::isinstance<py::array>(object)) wrong_type(name, object, expected);
  const auto array = py::reinterpret_borrow<py::array>(object);
  const char code = array.dtype().char_();
  bool known = false;
  for (const char* k = kinds; *k; ++k) known |= *k == code;
  if (!known || array.dtype().byteorder() == '>') wrong_type(name, object, expected);
  // Misaligned elements are read by no vector loop: numpy says so in its flags.
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!(array.flags() & kAligned)) wrong(name, object, "aligned elements; pass a copy");
  return array;
}

void check_sides(const py::array& a, int axis, const char* name) {
  for (int i = axis; i < axis + 2; ++i) {
    if (a.shape(i) < 1 || a.shape(i) > kLargestSide) {
      wrong(name, a, "sides of 1 to " + std::to_string(kLargestSide) + " pixels");
    }
  }
}

// Rows forward in memory, one behind the other; returns the pitch.
int64_t pitch_of(const py::array& a, const char* name, int64_t row_bytes) {
  if (a.shape(0) == 1) return row_bytes;
  if (a.strides(0) < row_bytes) {
    wrong(name, a, "rows that follow one another; pass numpy.ascontiguousarray of it");
  }
  return a.strides(0);
}

bool contiguous(const py::array& a) { return (a.flags() & py::array::c_style) != 0; }

Frame packed_frame(const py::array& a, Layout layout) {
  if (a.ndim() != 3 || a.shape(2) != 3) wrong("frame", a, "uint8 [height, width, 3]");
  check_sides(a, 0, "frame");
  if (!stride_is(a, 2, 1) || !stride_is(a, 1, 3)) {
    wrong("frame", a, "packed pixels, strides (pitch, 3, 1); pass numpy.ascontiguousarray of it");
  }
  Frame frame;
  frame.pixels = static_cast<const uint8_t*>(a.data());
  frame.pitch = pitch_of(a, "frame", 3 * a.shape(1));
  frame.height = static_cast<int>(a.shape(0));
  frame.width = static_cast<int>(a.shape(1));
  frame.layout = layout;
  return frame;
}

void check_plane(const py::array& a, const char* name, const std::string& expected) {
  if (a.ndim() != 2) wrong(name, a, expected);
  if (a.shape(0) < 1 || a.shape(1) < 1 || a.shape(0) > 2 * kLargestSide ||
      a.shape(1) > kLargestSide) {
    wrong(name, a, "sides of 1 to " + std::to_string(kLargestSide) + " pixels");
  }
  if (!stride_is(a, 1, 1)) {
    wrong(name, a, "bytes side by side in a row; pass numpy.ascontiguousarray of it");
  }
}

Frame nv12_frame(const py::array& a, const py::object& second) {
  const bool planes = !second.is_none();
  const std::string expected = planes ? "NV12 luma, uint8 [height, width], both even"
                                      : "NV12, uint8 [height * 3 / 2, width], both even";
  check_plane(a, "frame", expected);
  const int64_t rows = planes ? a.shape(0) : a.shape(0) / 3 * 2;
  if (rows % 2 || a.shape(1) % 2 || (!planes && a.shape(0) % 3) || rows > kLargestSide) {
    wrong("frame", a, expected);
  }
  Frame frame;
  frame.pixels = static_cast<const uint8_t*>(a.data());
  frame.pitch = pitch_of(a, "frame", a.shape(1));
  frame.height = static_cast<int>(rows);
  frame.width = static_cast<int>(a.shape(1));
  frame.layout = Layout::NV12;
  frame.chroma = frame.pixels + rows * frame.pitch;
  frame.chroma_pitch = frame.pitch;
  if (planes) {
    const auto chroma = array_of(second, "chroma", "B", "uint8 [height / 2, width]");
    check_plane(chroma, "chroma", "uint8 [height / 2, width]");
    if (chroma.shape(0) * 2 != rows || chroma.shape(1) != a.shape(1)) {
      wrong("chroma", chroma, "[height / 2, width] of luma " + describe(a));
    }
    frame.chroma = static_cast<const uint8_t*>(chroma.data());
    frame.chroma_pitch = pitch_of(chroma, "chroma", chroma.shape(1));
  }
  return frame;
}

}  // namespace

std::string describe(const py::handle& object) {
  if (!py::isinstance<py::array>(object)) {
    return std::string(Py_TYPE(object.ptr())->tp_name) + " " +
           std::string(py::str(py::repr(object))).substr(0, 60);
  }
  const auto a = py::reinterpret_borrow<py::array>(object);
  return std::string(py::str(a.dtype())) + " " + tuple_text(a.shape(), a.ndim()) +
         " with strides " + tuple_text(a.strides(), a.ndim());
}

Layout layout_from(const std::string& name) {
  if (name == "RGB") return Layout::RGB;
  if (name == "BGR") return Layout::BGR;
  if (name == "NV12") return Layout::NV12;
  throw py::value_error("layout is '" + name.substr(0, 40) + "'; expected RGB, BGR or NV12");
}

YuvToRgb matrix_from(const std::string& name, const std::string& range) {
  if (range != "limited" && range != "full") {
    throw py::value_error("value_range is '" + range.substr(0, 40) + "'; expected limited or full");
  }
  if (name == "BT.601") return yuv_to_rgb(0.299, 0.114, range == "full");
  if (name == "BT.709") return yuv_to_rgb(0.2126, 0.0722, range == "full");
  throw py::value_error("matrix is '" + name.substr(0, 40) + "'; expected BT.601 or BT.709");
}

Frame frame_from(const py::object& array, const py::object& chroma, Layout layout) {
  const bool nv12 = layout == Layout::NV12;
  const auto a = array_of(array, "frame", "B", nv12 ? "uint8 NV12" : "uint8 [height, width, 3]");
  if (nv12) return nv12_frame(a, chroma);
  if (!chroma.is_none()) wrong_type("chroma", chroma, "None, unless the layout is NV12");
  return packed_frame(a, layout);
}

Input input_from(const py::object& array) {
  const std::string expected = "float32 or float16 [3, height, width] or [1, 3, height, width]";
  const auto a = array_of(array, "out", "fe", expected);
  const int lead = static_cast<int>(a.ndim()) - 3;
  if (lead < 0 || lead > 1 || a.shape(lead) != 3 || (lead == 1 && a.shape(0) != 1)) {
    wrong("out", array, expected);
  }
  check_sides(a, lead + 1, "out");
  if (!contiguous(a) || !a.writeable()) wrong("out", array, "a contiguous, writable array");
  return {const_cast<void*>(a.data()), static_cast<int>(a.shape(lead + 1)),
          static_cast<int>(a.shape(lead + 2)), a.itemsize() == 2};
}

int whole(const py::object& value, const char* name, int least, int most) {
  int overflow = 0;
  const bool integer = PyLong_Check(value.ptr());
  const long long number = integer ? PyLong_AsLongLongAndOverflow(value.ptr(), &overflow) : 0;
  const std::string expected =
      "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  if (!integer) wrong_type(name, value, expected);
  if (overflow || number < least || number > most) wrong(name, value, expected);
  return static_cast<int>(number);
}

Content content_from(const py::object& four, int height, int width) {
  if (!py::isinstance<py::tuple>(four) || py::len(four) != 4) {
    wrong_type("content", four, "(top, left, height, width)");
  }
  const py::tuple t = four;
  Content content;
  content.top = whole(t[0], "content top", 0, height - 1);
  content.left = whole(t[1], "content left", 0, width - 1);
  content.height = whole(t[2], "content height", 1, height - content.top);
  content.width = whole(t[3], "content width", 1, width - content.left);
  return content;
}

Normalisation normalisation_from(const py::object& scale, const py::object& bias) {
  Normalisation n{};
  for (const auto& [object, values] : {std::pair{&scale, n.scale}, std::pair{&bias, n.bias}}) {
    if (!py::isinstance<py::tuple>(*object) || py::len(*object) != 3) {
      wrong_type("normalisation", *object, "three numbers");
    }
    const py::tuple t = *object;
    for (int c = 0; c < 3; ++c) {
      const double value = PyFloat_AsDouble(py::object(t[c]).ptr());
      if (PyErr_Occurred()) throw py::error_already_set();
      if (!std::isfinite(value) || std::fabs(value) > 1e30) {
        wrong("normalisation", *object, "finite numbers");
      }
      values[c] = static_cast<float>(value);
    }
  }
  return n;
}

Logits logits_from(const py::object& array) {
  const auto a = array_of(array, "logits", "f", "float32 [classes, height, width]");
  if (a.ndim() != 3 || a.shape(0) < 1 || a.shape(0) > kMostClasses) {
    wrong("logits", array, "[classes, height, width] with 1 to 255 classes");
  }
  check_sides(a, 1, "logits");
  for (int axis = 0; axis < 3; ++axis) {
    if (axis == 2 ? !stride_is(a, 2, 4) : a.shape(axis) > 1 && a.strides(axis) % 4 != 0) {
      wrong("logits", array, "columns side by side; pass numpy.ascontiguousarray of it");
    }
  }
  return {static_cast<const float*>(a.data()),
          a.shape(0) > 1 ? a.strides(0) / 4 : 0,
          a.shape(1) > 1 ? a.strides(1) / 4 : 0,
          static_cast<int>(a.shape(0)),
          static_cast<int>(a.shape(1)),
          static_cast<int>(a.shape(2))};
}

MaskView mask_from(const py::object& array, const char* name) {
  const auto a = array_of(array, name, "B?", "uint8 or bool [height, width]");
  if (a.ndim() != 2) wrong(name, array, "uint8 [height, width]");
  check_sides(a, 0, name);
  if (!contiguous(a)) wrong(name, array, "a contiguous array; pass numpy.ascontiguousarray of it");
  return {static_cast<const uint8_t*>(a.data()), static_cast<int>(a.shape(0)),
          static_cast<int>(a.shape(1))};
}

uint8_t* writable_mask_from(const py::object& array, const char* name, int height, int width) {
  const MaskView view = mask_from(array, name);
  if (view.height != height || view.width != width ||
      !py::reinterpret_borrow<py::array>(array).writeable()) {
    wrong(name, array,
          "a writable [" + std::to_string(height) + ", " + std::to_string(width) + "]");
  }
  return const_cast<uint8_t*>(view.data);
}

uint8_t* writable_frame_from(const py::object& array, const MaskView& mask, int64_t& pitch) {
  const Frame frame = frame_from(array, py::none(), Layout::RGB);
  if (frame.height != mask.height || frame.width != mask.width) {
    wrong("frame", array,
          "the mask's size, [" + std::to_string(mask.height) + ", " + std::to_string(mask.width) +
              ", 3]");
  }
  if (!py::reinterpret_borrow<py::array>(array).writeable()) {
    wrong("frame", array, "a writable array; pass a copy");
  }
  pitch = frame.pitch;
  return const_cast<uint8_t*>(frame.pixels);
}

void color_from(const py::object& three, uint8_t color[3]) {
  if (!py::isinstance<py::tuple>(three) || py::len(three) != 3) {
    wrong_type("color", three, "three integers from 0 to 255");
  }
  const py::tuple t = three;
  for (int c = 0; c < 3; ++c) color[c] = static_cast<uint8_t>(whole(t[c], "color", 0, 255));
}

}  // namespace medisseg
