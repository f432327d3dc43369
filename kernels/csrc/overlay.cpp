// Drawing a mask into a frame: only rows and runs inside the mask are touched.
#include <algorithm>
#include <cstring>
#include <vector>

#include "frames_cpu.h"
#include "rows.h"
#include "threads.h"

namespace medisseg {
namespace {

// Rows that take about 150 microseconds; see frames_cpu.cpp.
int grain(const MaskView& mask) { return std::max(1, (1 << 19) / mask.width); }

// The first index from `begin` at which the row is 0 (wanted false) or not 0 (wanted true).
int seek(const uint8_t* row, int begin, int end, bool wanted) {
  int i = begin;
  for (; i + 8 <= end; i += 8) {
    uint64_t word;
    std::memcpy(&word, row + i, 8);
    const uint64_t high = 0x8080808080808080ull;
    // Bit 7 of each byte of `set` says that the byte is not 0.
    const uint64_t set = (((word & ~high) + ~high) | word) & high;
    if (wanted ? set != 0 : set != high) break;
  }
  while (i < end && (row[i] != 0) != wanted) ++i;
  return i;
}

// Zeros where a background pixel or the frame's edge lies within `thickness` rows and columns.
class Inner {
 public:
  Inner(const MaskView& mask, int thickness)
      : mask_(mask), thickness_(thickness), column_(mask.width), inner_(mask.width) {}

  // The inner row y, valid within [begin, end).
  const uint8_t* row(int y, int begin, int end) {
    const int t = thickness_;
    if (y < t || y + t >= mask_.height || end - begin <= 2 * t) {
      std::memset(&inner_[begin], 0, end - begin);
      return inner_.data();
    }
    const uint8_t* middle = mask_.data + static_cast<int64_t>(y) * mask_.width;
    const int count = end - begin;
    std::memcpy(&column_[begin], middle + begin, count);
    for (int d = 1; d <= t; ++d) {
      const int64_t away = static_cast<int64_t>(d) * mask_.width;
      rows().minimum(&column_[begin], middle - away + begin, count);
      rows().minimum(&column_[begin], middle + away + begin, count);
    }
    std::memset(&inner_[begin], 0, count);
    std::memcpy(&inner_[begin + t], &column_[begin + t], count - 2 * t);
    for (int d = 1; d <= t; ++d) {
      rows().minimum(&inner_[begin + t], &column_[begin + t - d], count - 2 * t);
      rows().minimum(&inner_[begin + t], &column_[begin + t + d], count - 2 * t);
    }
    return inner_.data();
  }

 private:
  MaskView mask_;
  int thickness_;
  std::vector<uint8_t> column_, inner_;
};

// Calls visit(y, begin, end, inner) for every run of mask pixels in the rows of [first, last).
template <class Visit>
void each_run(const MaskView& mask, int thickness, int first, int last, const Visit& visit) {
  Inner inner(mask, thickness);
  for (int y = first; y < last; ++y) {
    const uint8_t* row = mask.data + static_cast<int64_t>(y) * mask.width;
    for (int end, x = seek(row, 0, mask.width, true); x < mask.width;
         x = seek(row, end, mask.width, true)) {
      end = seek(row, x, mask.width, false);
      visit(y, x, end, thickness > 0 ? inner.row(y, x, end) : row);
    }
  }
}

void fill(uint8_t* pixels, const uint8_t color[3], int count) {
  for (int i = 0; i < count; ++i) std::memcpy(pixels + 3 * i, color, 3);
}

}  // namespace

void outline(const MaskView& mask, int thickness, uint8_t* out) {
  parallel_rows(mask.height, grain(mask), [&](int first, int last) {
    std::memset(out + static_cast<int64_t>(first) * mask.width, 0,
                static_cast<size_t>(last - first) * mask.width);
    each_run(mask, thickness, first, last, [&](int y, int begin, int end, const uint8_t* inner) {
      uint8_t* row = out + static_cast<int64_t>(y) * mask.width;
      for (int x = begin; x < end; ++x) row[x] = inner[x] == 0;
    });
  });
}

void overlay(uint8_t* pixels, int64_t pitch, const MaskView& mask, const Paint& paint) {
  uint16_t add[3];
  for (int c = 0; c < 3; ++c) add[c] = static_cast<uint16_t>(paint.color[c] * paint.alpha);
  parallel_rows(mask.height, grain(mask), [&](int first, int last) {
    each_run(mask, paint.thickness, first, last, [&](int y, int begin, int end, const uint8_t* inner) {
      uint8_t* row = pixels + y * pitch;
      for (int stop, x = begin; x < end; x = stop) {
        const bool blended = inner[x] != 0;
        stop = seek(inner, x, end, !blended);
        if (blended) {
          rows().blend(row + 3 * x, add, 256 - paint.alpha, 3 * (stop - x));
        } else {
          fill(row + 3 * x, paint.color, stop - x);
        }
      }
    });
  });
}

}  // namespace medisseg
