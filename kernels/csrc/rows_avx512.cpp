// Row loops for AVX-512 (F, BW, VL), sixteen lanes; compiled with those flags alone.
#include "half.h"
#include "rows.h"

#ifdef __AVX512BW__
#include <immintrin.h>

namespace medisseg {
namespace {

struct Lanes {
  using F = __m512;
  using I = __m512i;
  static constexpr int width = 16;

  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static I thrice(I x) { return _mm512_add_epi32(x, _mm512_add_epi32(x, x)); }
  static I even(I x) { return _mm512_andnot_si512(_mm512_set1_epi32(1), x); }
  static I upper_if_odd(I pair, I x) {
    const I odd = _mm512_and_si512(x, _mm512_set1_epi32(1));
    return _mm512_srlv_epi32(pair, _mm512_slli_epi32(odd, 4));
  }
  static I gather_bytes(const uint8_t* base, I offset) {
    return _mm512_i32gather_epi32(offset, base, 1);
  }
  static F gather(const float* base, I index) { return _mm512_i32gather_ps(index, base, 4); }
  template <int k>
  static F byte(I packed) {
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(packed, 8 * k), _mm512_set1_epi32(255)));
  }
  static void store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static void store_half(uint16_t* p, F value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value, 0));
  }
};

#include "rows_body.h"

constexpr RowKernels kKernels{"avx512",      sample_vector<Lanes>, stretch_vector<Lanes>, mix_row,
                              threshold_row, blend_row,            minimum_row};

}  // namespace

const RowKernels* avx512_rows() { return &kKernels; }

}  // namespace medisseg
#else
namespace medisseg {
const RowKernels* avx512_rows() { return nullptr; }
}  // namespace medisseg
#endif
