// The inner loops, one row each, compiled once per instruction set and chosen at run time.
#pragma once

#include "sample.h"

namespace medisseg {

// The columns of a resampled axis, as separate arrays that vector loads can take.
struct Columns {
  const int32_t* first = nullptr;  // source column; the second tap is the column after it
  const float* weight = nullptr;   // of the second tap; 0 where there is no column after it
  int count = 0;
  int from = 0;  // source columns
};

// One output row of preprocessing.
struct SampleRow {
  Frame frame;
  YuvToRgb yuv;
  Tap y;
  Columns columns;
  Normalisation normalisation;
  void* out[3];  // where the row starts in the red, green and blue plane
  bool half;
};

struct RowKernels {
  const char* name;
  void (*sample)(const SampleRow& row);
  // out[i] = the source row at column i of the resampled axis
  void (*stretch)(const float* source, const Columns& columns, float* out);
  // out = a + (b - a) * weight
  void (*mix)(const float* a, const float* b, float weight, float* out, int count);
  // mask = mix(a, b, weight) > threshold; returns the number of ones
  int (*threshold)(const float* a, const float* b, float weight, float threshold, uint8_t* mask,
                   int count);
  // bytes = (bytes * keep + add + 128) >> 8 with add repeating every three bytes; keep <= 256
  void (*blend)(uint8_t* bytes, const uint16_t add[3], int keep, int count);
  // out = min(out, bytes)
  void (*minimum)(uint8_t* out, const uint8_t* bytes, int count);
};

const RowKernels* scalar_rows();
const RowKernels* avx2_rows();    // these three return null where they were not compiled
const RowKernels* avx512_rows();
const RowKernels* neon_rows();

const RowKernels& rows();                       // the ones in use
bool use_rows(const char* name);                // false: unknown, or not on this processor
int available_rows(const char* names[4]);       // fills names, returns how many

}  // namespace medisseg
