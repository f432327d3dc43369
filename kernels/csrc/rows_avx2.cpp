// Row loops for AVX2 with F16C, eight lanes; compiled with those flags alone (CMakeLists.txt).
#include "half.h"
#include "rows.h"

#ifdef __AVX2__
#include <immintrin.h>

namespace medisseg {
namespace {

struct Lanes {
  using F = __m256;
  using I = __m256i;
  static constexpr int width = 8;

  static I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static I thrice(I x) { return _mm256_add_epi32(x, _mm256_add_epi32(x, x)); }
  static I even(I x) { return _mm256_andnot_si256(_mm256_set1_epi32(1), x); }
  static I upper_if_odd(I pair, I x) {
    const I odd = _mm256_and_si256(x, _mm256_set1_epi32(1));
    return _mm256_srlv_epi32(pair, _mm256_slli_epi32(odd, 4));
  }
  static I gather_bytes(const uint8_t* base, I offset) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base), offset, 1);
  }
  static F gather(const float* base, I index) { return _mm256_i32gather_ps(base, index, 4); }
  template <int k>
  static F byte(I packed) {
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(packed, 8 * k), _mm256_set1_epi32(255)));
  }
  static void store(float* p, F value) { _mm256_storeu_ps(p, value); }
  static void store_half(uint16_t* p, F value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value, 0));
  }
};

#include "rows_body.h"

constexpr RowKernels kKernels{"avx2",        sample_vector<Lanes>, stretch_vector<Lanes>, mix_row,
                              threshold_row, blend_row,            minimum_row};

}  // namespace

const RowKernels* avx2_rows() { return &kKernels; }

}  // namespace medisseg
#else
namespace medisseg {
const RowKernels* avx2_rows() { return nullptr; }
}  // namespace medisseg
#endif
