// Connected components by runs and union-find, and run-length codes in column order.
#include <algorithm>
#include <cstring>
#include <vector>

#include "frames_cpu.h"

namespace medisseg {
namespace {

struct Run {
  int y, begin, end, parent;
};

int root(std::vector<Run>& runs, int i) {
  while (runs[i].parent != i) {
    runs[i].parent = runs[runs[i].parent].parent;
    i = runs[i].parent;
  }
  return i;
}

void join(std::vector<Run>& runs, int a, int b) {
  a = root(runs, a);
  b = root(runs, b);
  runs[std::max(a, b)].parent = std::min(a, b);
}

// The row's runs of pixels that are not 0, appended.
void find_runs(const uint8_t* row, int y, int width, std::vector<Run>& runs) {
  for (int x = 0; x < width;) {
    uint64_t word = 0;
    if (x + 8 <= width) std::memcpy(&word, row + x, 8);
    if (x + 8 <= width && word == 0) {
      x += 8;
    } else if (row[x] == 0) {
      ++x;
    } else {
      const int begin = x;
      while (x < width && row[x] != 0) ++x;
      const int id = static_cast<int>(runs.size());
      runs.push_back({y, begin, x, id});
    }
  }
}

}  // namespace

std::vector<Region> regions(const MaskView& mask) {
  std::vector<Run> runs;
  int above = 0;  // the first run of the row above
  for (int y = 0; y < mask.height; ++y) {
    const int here = static_cast<int>(runs.size());
    find_runs(mask.data + static_cast<int64_t>(y) * mask.width, y, mask.width, runs);
    const int end = static_cast<int>(runs.size());
    for (int i = above, k = here; i < here && k < end;) {
      // Diagonal neighbours touch: runs [b, e) join where they overlap by -1 or more.
      if (runs[i].begin <= runs[k].end && runs[k].begin <= runs[i].end) join(runs, i, k);
      if (runs[i].end < runs[k].end) {
        ++i;
      } else {
        ++k;
      }
    }
    above = here;
  }
  std::vector<Region> out;
  std::vector<int> place(runs.size(), -1);
  for (int i = 0; i < static_cast<int>(runs.size()); ++i) {
    const Run& run = runs[i];
    int& slot = place[root(runs, i)];
    if (slot < 0) {
      slot = static_cast<int>(out.size());
      out.push_back({run.begin, run.y, run.end - run.begin, 1, 0});
    }
    Region& region = out[slot];
    const int right = std::max(region.x + region.width, run.end);
    region.x = std::min(region.x, run.begin);
    region.width = right - region.x;
    region.height = run.y - region.y + 1;
    region.area += run.end - run.begin;
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const Region& a, const Region& b) { return a.area > b.area; });
  return out;
}

std::vector<uint32_t> encode_rle(const MaskView& mask) {
  // Where the value changes from the pixel above; found row by row, as memory lies, then sorted
  // into columns by counting. A column's first pixel is compared with 0 here, mended below.
  std::vector<std::vector<uint32_t>> changes(mask.width);
  const std::vector<uint8_t> zeros(mask.width, 0);
  for (int y = 0; y < mask.height; ++y) {
    const uint8_t* row = mask.data + static_cast<int64_t>(y) * mask.width;
    const uint8_t* above = y > 0 ? row - mask.width : zeros.data();
    for (int x = 0; x < mask.width;) {
      if (x + 8 <= mask.width && std::memcmp(row + x, above + x, 8) == 0) {
        x += 8;
        continue;
      }
      if ((row[x] != 0) != (above[x] != 0)) changes[x].push_back(static_cast<uint32_t>(y));
      ++x;
    }
  }
  std::vector<uint32_t> counts;
  uint32_t start = 0;
  bool value = false;
  const auto change = [&](uint32_t position) {
    counts.push_back(position - start);
    start = position;
    value = !value;
  };
  for (int x = 0; x < mask.width; ++x) {
    const uint32_t base = static_cast<uint32_t>(x) * static_cast<uint32_t>(mask.height);
    size_t k = 0;
    const bool first = !changes[x].empty() && changes[x][0] == 0;
    if (first) ++k;
    if (first != value) change(base);
    for (; k < changes[x].size(); ++k) change(base + changes[x][k]);
  }
  counts.push_back(static_cast<uint32_t>(mask.width) * static_cast<uint32_t>(mask.height) - start);
  return counts;
}

void decode_rle(const uint32_t* counts, int64_t runs, uint8_t* mask, int height, int width) {
  std::memset(mask, 0, static_cast<size_t>(height) * width);
  int64_t position = 0;
  for (int64_t i = 0; i < runs; position += counts[i], ++i) {
    if (i % 2 == 0) continue;
    for (int64_t p = position; p < position + counts[i]; ++p) {
      mask[p % height * width + p / height] = 1;
    }
  }
}

}  // namespace medisseg
