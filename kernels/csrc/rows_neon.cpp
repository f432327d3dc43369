// Row loops for 64-bit Arm, four lanes. NEON has no gather: four loads take its place.
#include "half.h"
#include "rows.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace medisseg {
namespace {

struct Lanes {
  using F = float32x4_t;
  using I = uint32x4_t;
  static constexpr int width = 4;

  static I load(const int32_t* p) { return vreinterpretq_u32_s32(vld1q_s32(p)); }
  static F load(const float* p) { return vld1q_f32(p); }
  static F set(float value) { return vdupq_n_f32(value); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static I thrice(I x) { return vmulq_n_u32(x, 3); }
  static I even(I x) { return vbicq_u32(x, vdupq_n_u32(1)); }
  static I upper_if_odd(I pair, I x) {
    const I odd = vtstq_u32(x, vdupq_n_u32(1));
    return vbslq_u32(odd, vshrq_n_u32(pair, 16), pair);
  }
  template <class T>
  static uint32_t word(const T* p) {
    uint32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
  }
  static I gather_bytes(const uint8_t* base, I offset) {
    I out = vdupq_n_u32(word(base + vgetq_lane_u32(offset, 0)));
    out = vsetq_lane_u32(word(base + vgetq_lane_u32(offset, 1)), out, 1);
    out = vsetq_lane_u32(word(base + vgetq_lane_u32(offset, 2)), out, 2);
    return vsetq_lane_u32(word(base + vgetq_lane_u32(offset, 3)), out, 3);
  }
  static F gather(const float* base, I index) {
    F out = vdupq_n_f32(base[vgetq_lane_u32(index, 0)]);
    out = vsetq_lane_f32(base[vgetq_lane_u32(index, 1)], out, 1);
    out = vsetq_lane_f32(base[vgetq_lane_u32(index, 2)], out, 2);
    return vsetq_lane_f32(base[vgetq_lane_u32(index, 3)], out, 3);
  }
  template <int k>
  static F byte(I packed) {
    if constexpr (k == 0) {
      return vcvtq_f32_u32(vandq_u32(packed, vdupq_n_u32(255)));
    } else {
      return vcvtq_f32_u32(vandq_u32(vshrq_n_u32(packed, 8 * k), vdupq_n_u32(255)));
    }
  }
  static void store(float* p, F value) { vst1q_f32(p, value); }
  static void store_half(uint16_t* p, F value) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(value)));
  }
};

#include "rows_body.h"

constexpr RowKernels kKernels{"neon",        sample_vector<Lanes>, stretch_vector<Lanes>, mix_row,
                              threshold_row, blend_row,            minimum_row};

}  // namespace

const RowKernels* neon_rows() { return &kKernels; }

}  // namespace medisseg
#else
namespace medisseg {
const RowKernels* neon_rows() { return nullptr; }
}  // namespace medisseg
#endif
