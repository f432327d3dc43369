// Python arguments to the views of image.h, checked: what was got, what was expected, what to do.
#pragma once

#include "color.h"
#include "image.h"
#include "view.h"

namespace medisseg {

Layout layout_from(const py::object& name);
YuvToRgb matrix_from(const py::object& name, const py::object& range);

// uint8 [H, W, 3], or NV12 [3 H / 2, W]; the pitch is the first stride. `chroma` is null, or NV12's
// second plane [H / 2, W] (the frame is then luma alone, [H, W]).
Frame frame_from(const View& view, const View* chroma, Layout layout);

// float32 or float16, contiguous and writable, [3, h, w] or [1, 3, h, w].
Input input_from(const View& view);

Content content_from(const py::object& four, int height, int width);
Normalisation normalisation_from(const py::object& scale, const py::object& bias);

// float32 (on a GPU also float16) [K, h, w], columns adjacent.
Logits logits_from(const View& view);

// float32, contiguous and writable, of the given shape.
float* output_from(const View& view, int planes, int height, int width);

// uint8 [H, W], contiguous.
MaskView mask_from(const View& view);
uint8_t* writable_mask_from(const View& view);
uint8_t* writable_mask_from(const View& view, const MaskView& like);

// uint8 [H, W, 3], writable, packed pixels.
Frame writable_frame_from(const View& view, const MaskView& like);

Paint paint_from(const py::object& color, const py::object& alpha, const py::object& thickness);
int whole(const py::object& value, const char* name, int least, int most);
double real(const py::object& value, const char* name, double least, double most);

}  // namespace medisseg
