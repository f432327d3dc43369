// Preprocessing, resizing and thresholding on the CPU: rows in parallel, SIMD within the row.
#include "frames_cpu.h"

#include <algorithm>
#include <cstring>

#include "rows.h"
#include "threads.h"

namespace medisseg {
namespace {

// A range of rows holds about 150 microseconds of work: less is done sooner by the calling thread, and
// on a machine with more to do than cores, waiting for another thread costs milliseconds.
constexpr int kSampledPixels = 1 << 16;  // a range of preprocessing, from measurements
constexpr int kResizedPixels = 1 << 19;  // of logits, where each source row serves several

int grain(int pixels, int width) { return std::max(1, pixels / width); }

// The columns of a resampled axis; owns what Columns points to.
struct Axis {
  std::vector<int32_t> first;
  std::vector<float> weight;
  int from;

  Axis(int from_, int to) : first(to), weight(to), from(from_) {
    for (int i = 0; i < to; ++i) {
      const Tap t = tap(i, from, to);
      first[i] = t.first;
      weight[i] = t.weight;
    }
  }
  Columns columns() const {
    return {first.data(), weight.data(), static_cast<int>(first.size()), from};
  }
};

// Source rows stretched to the output's width: an enlarged image uses each for several rows.
class StretchedRows {
 public:
  StretchedRows(const Logits& logits, const Axis& axis)
      : logits_(logits), columns_(axis.columns()), storage_(2 * columns_.count) {}

  // The row, stretched; the row asked for before this one stays valid.
  const float* row(int plane, int index) {
    for (int i = 0; i < 2; ++i) {
      if (held_[i] == index && plane_ == plane) {
        oldest_ = 1 - i;
        return &storage_[i * columns_.count];
      }
    }
    if (plane_ != plane) held_[0] = held_[1] = -1;
    plane_ = plane;
    const int slot = oldest_;
    held_[slot] = index;
    oldest_ = 1 - slot;
    float* out = &storage_[slot * columns_.count];
    rows().stretch(static_cast<const float*>(logits_.data) + plane * logits_.plane_stride + index * logits_.row_stride,
                   columns_, out);
    return out;
  }

 private:
  Logits logits_;
  Columns columns_;
  std::vector<float> storage_;
  int held_[2] = {-1, -1};
  int plane_ = -1;
  int oldest_ = 0;
};

size_t element_size(const Input& input) { return input.half ? 2 : 4; }

uint8_t* element(const Input& input, int plane, int y, int x) {
  const int64_t index = (static_cast<int64_t>(plane) * input.height + y) * input.width + x;
  return static_cast<uint8_t*>(input.data) + index * element_size(input);
}

void clear(const Input& input, int y, int begin, int end) {
  for (int plane = 0; plane < 3; ++plane) {
    std::memset(element(input, plane, y, begin), 0, (end - begin) * element_size(input));
  }
}

void argmax_rows(const Logits& logits, const Axis& axis, int begin, int end, uint8_t* mask,
                 int height) {
  const Columns columns = axis.columns();
  const int width = columns.count;
  std::vector<float> best(width), value(width);
  std::vector<StretchedRows> planes(logits.classes, StretchedRows(logits, axis));
  for (int y = begin; y < end; ++y) {
    const Tap t = tap(y, logits.height, height);
    uint8_t* out = mask + static_cast<int64_t>(y) * width;
    std::memset(out, 0, width);
    for (int plane = 0; plane < logits.classes; ++plane) {
      const float* top = planes[plane].row(plane, t.first);
      const float* bottom = planes[plane].row(plane, t.second);
      rows().mix(top, bottom, t.weight, value.data(), width);
      for (int x = 0; x < width; ++x) {
        const bool better = plane == 0 || value[x] > best[x];
        best[x] = better ? value[x] : best[x];
        out[x] = better ? static_cast<uint8_t>(plane) : out[x];
      }
    }
  }
}

}  // namespace

void preprocess(const Frame& frame, const YuvToRgb& yuv, const Content& content,
                const Normalisation& normalisation, const Input& input) {
  const Axis axis(frame.width, content.width);
  const int bottom = content.top + content.height, right = content.left + content.width;
  parallel_rows(input.height, grain(kSampledPixels, input.width), [&](int begin, int end) {
    for (int y = begin; y < end; ++y) {
      if (y < content.top || y >= bottom) {
        clear(input, y, 0, input.width);
        continue;
      }
      clear(input, y, 0, content.left);
      clear(input, y, right, input.width);
      SampleRow row{frame, yuv, tap(y - content.top, frame.height, content.height), axis.columns(),
                    normalisation, {}, input.half};
      for (int plane = 0; plane < 3; ++plane) row.out[plane] = element(input, plane, y, content.left);
      rows().sample(row);
    }
  });
}

void resize(const Logits& logits, float* out, int height, int width) {
  const Axis axis(logits.width, width);
  parallel_rows(logits.classes * height, grain(kResizedPixels, width), [&](int begin, int end) {
    StretchedRows stretched(logits, axis);
    for (int i = begin; i < end; ++i) {
      const int plane = i / height;
      const Tap t = tap(i % height, logits.height, height);
      const float* top = stretched.row(plane, t.first);
      const float* bottom = stretched.row(plane, t.second);
      rows().mix(top, bottom, t.weight, out + static_cast<int64_t>(i) * width, width);
    }
  });
}

int64_t postprocess(const Logits& logits, float threshold, uint8_t* mask, int height, int width) {
  const Axis axis(logits.width, width);
  std::vector<int> ones(height);
  parallel_rows(height, grain(kResizedPixels, width), [&](int begin, int end) {
    if (logits.classes > 1) {
      argmax_rows(logits, axis, begin, end, mask, height);
    } else {
      StretchedRows stretched(logits, axis);
      for (int y = begin; y < end; ++y) {
        const Tap t = tap(y, logits.height, height);
        const float* top = stretched.row(0, t.first);
        const float* bottom = stretched.row(0, t.second);
        ones[y] = rows().threshold(top, bottom, t.weight, threshold,
                                   mask + static_cast<int64_t>(y) * width, width);
      }
      return;
    }
    for (int y = begin; y < end; ++y) {
      const uint8_t* row = mask + static_cast<int64_t>(y) * width;
      ones[y] = static_cast<int>(width - std::count(row, row + width, 0));
    }
  });
  int64_t area = 0;
  for (const int count : ones) area += count;
  return area;
}

}  // namespace medisseg
