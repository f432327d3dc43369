// Row loops for any processor; also what the vector versions are tested against.
#include "half.h"
#include "rows.h"

namespace medisseg {
namespace {

#include "rows_body.h"

void sample_row(const SampleRow& row) { sample_scalar(row, 0); }

void stretch_row(const float* source, const Columns& columns, float* out) {
  stretch_scalar(source, columns, 0, out);
}

constexpr RowKernels kKernels{"scalar",      sample_row, stretch_row, mix_row,
                              threshold_row, blend_row,  minimum_row};

}  // namespace

const RowKernels* scalar_rows() { return &kKernels; }

}  // namespace medisseg
