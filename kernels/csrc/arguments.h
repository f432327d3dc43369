// Python arguments to views, checked: what was got, what was expected, what to do.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "color.h"
#include "image.h"

namespace medisseg {

namespace py = pybind11;

// "uint8 [2, 3] with strides (3, 1)" for messages.
std::string describe(const py::handle& object);

Layout layout_from(const std::string& name);
YuvToRgb matrix_from(const std::string& name, const std::string& range);

// uint8 [H, W, 3], or NV12 [3 H / 2, W]; the pitch is the first stride. `chroma` is None, or NV12's
// second plane [H / 2, W] (the frame is then luma alone, [H, W]).
Frame frame_from(const py::object& array, const py::object& chroma, Layout layout);

// float32 or float16, contiguous and writable, [3, h, w] or [1, 3, h, w].
Input input_from(const py::object& array);

Content content_from(const py::object& four, int height, int width);
Normalisation normalisation_from(const py::object& scale, const py::object& bias);

// float32 [K, h, w], columns adjacent.
Logits logits_from(const py::object& array);

// uint8 [H, W], contiguous.
MaskView mask_from(const py::object& array, const char* name);
uint8_t* writable_mask_from(const py::object& array, const char* name, int height, int width);

// uint8 [H, W, 3], writable, packed pixels; fills the pitch.
uint8_t* writable_frame_from(const py::object& array, const MaskView& mask, int64_t& pitch);

void color_from(const py::object& three, uint8_t color[3]);
int whole(const py::object& value, const char* name, int least, int most);

}  // namespace medisseg
