// The outline of a block of pixels, found in two passes over its own small memory: a pixel reads
// 2 (2 t + 1) values there, where its whole neighbourhood has (2 t + 1)^2. Plain C++, as pixels.h.
#pragma once

#include "image.h"

namespace medisseg {

constexpr int kTileWidth = 32, kTileHeight = 8;

struct Tile {
  int top, left, thickness;
  uint8_t* inside;  // [kTileHeight + 2 t][kTileWidth + 2 t]: 1 in the mask, 0 beside it
  uint8_t* across;  // [kTileHeight + 2 t][kTileWidth]: 1 where the row has no 0 within t
};

MEDISSEG_BOTH int tile_bytes(int thickness) {
  return (kTileHeight + 2 * thickness) * (2 * kTileWidth + 2 * thickness);
}

MEDISSEG_BOTH Tile tile_at(int top, int left, int thickness, uint8_t* memory) {
  const int inside = (kTileHeight + 2 * thickness) * (kTileWidth + 2 * thickness);
  return {top, left, thickness, memory, memory + inside};
}

// What thread `index` of `count` does; all wait for each other before narrow and before covered.
MEDISSEG_BOTH void load(const Tile& tile, const MaskView& mask, int index, int count) {
  const int t = tile.thickness, width = kTileWidth + 2 * t, height = kTileHeight + 2 * t;
  for (int i = index; i < width * height; i += count) {
    const int y = tile.top - t + i / width, x = tile.left - t + i % width;
    tile.inside[i] = y >= 0 && y < mask.height && x >= 0 && x < mask.width &&
                     mask.data[static_cast<int64_t>(y) * mask.width + x] != 0;
  }
}

MEDISSEG_BOTH void narrow(const Tile& tile, int index, int count) {
  const int t = tile.thickness, width = kTileWidth + 2 * t;
  for (int i = index; i < kTileWidth * (kTileHeight + 2 * t); i += count) {
    const uint8_t* row = tile.inside + i / kTileWidth * width + i % kTileWidth;
    uint8_t all = 1;
    for (int d = 0; d <= 2 * t; ++d) all &= row[d];
    tile.across[i] = all;
  }
}

// Whether a pixel has neither background nor the frame's edge within the thickness.
MEDISSEG_BOTH bool covered(const Tile& tile, int y, int x) {
  const uint8_t* column = tile.across + (y - tile.top) * kTileWidth + x - tile.left;
  uint8_t all = 1;
  for (int d = 0; d <= 2 * tile.thickness; ++d) all &= column[d * kTileWidth];
  return all != 0;
}

}  // namespace medisseg
