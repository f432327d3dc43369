// The row loops over a type `Lanes` of vector operations. Included within an unnamed namespace by
// one file for each instruction set, so no copy compiled for a newer processor is ever shared.
// Nothing of the standard library may be called here, for the same reason.

template <class Lanes>
struct Pixels {
  typename Lanes::F r, g, b;
};

template <class Lanes>
inline typename Lanes::F lerp(typename Lanes::F a, typename Lanes::F b, typename Lanes::F weight) {
  return Lanes::add(a, Lanes::mul(Lanes::sub(b, a), weight));
}

template <class Lanes>
inline Pixels<Lanes> lerp(const Pixels<Lanes>& a, const Pixels<Lanes>& b, typename Lanes::F weight) {
  return {lerp<Lanes>(a.r, b.r, weight), lerp<Lanes>(a.g, b.g, weight),
          lerp<Lanes>(a.b, b.b, weight)};
}

// Two neighbouring RGB pixels are six bytes: loads at bytes 0 and 2 read exactly those.
template <class Lanes>
inline Pixels<Lanes> packed_pair(const uint8_t* row, typename Lanes::I offset,
                                 typename Lanes::F weight) {
  const auto low = Lanes::gather_bytes(row, offset);
  const auto high = Lanes::gather_bytes(row + 2, offset);
  const Pixels<Lanes> a{Lanes::template byte<0>(low), Lanes::template byte<1>(low),
                        Lanes::template byte<2>(low)};
  const Pixels<Lanes> b{Lanes::template byte<1>(high), Lanes::template byte<2>(high),
                        Lanes::template byte<3>(high)};
  return lerp<Lanes>(a, b, weight);
}

template <class Lanes>
inline Pixels<Lanes> from_yuv(const YuvToRgb& k, typename Lanes::F y, typename Lanes::F u,
                              typename Lanes::F v) {
  using L = Lanes;
  const auto middle = L::set(128.0f), zero = L::set(0.0f), most = L::set(255.0f);
  const auto l = L::mul(L::sub(y, L::set(k.offset)), L::set(k.luma));
  u = L::sub(u, middle);
  v = L::sub(v, middle);
  const auto r = L::add(l, L::mul(L::set(k.red_v), v));
  const auto g = L::add(L::add(l, L::mul(L::set(k.green_u), u)), L::mul(L::set(k.green_v), v));
  const auto b = L::add(l, L::mul(L::set(k.blue_u), u));
  return {L::min(L::max(r, zero), most), L::min(L::max(g, zero), most),
          L::min(L::max(b, zero), most)};
}

// Reads four bytes of luma from column x and the two U, V pairs from column x & ~1.
template <class Lanes>
inline Pixels<Lanes> nv12_pair(const uint8_t* luma, const uint8_t* chroma, const YuvToRgb& k,
                               typename Lanes::I x, typename Lanes::F weight) {
  const auto y = Lanes::gather_bytes(luma, x);
  const auto uv = Lanes::gather_bytes(chroma, Lanes::even(x));
  const auto next = Lanes::upper_if_odd(uv, x);  // an odd column's neighbour has the next pair
  return lerp<Lanes>(
      from_yuv<Lanes>(k, Lanes::template byte<0>(y), Lanes::template byte<0>(uv),
                      Lanes::template byte<1>(uv)),
      from_yuv<Lanes>(k, Lanes::template byte<1>(y), Lanes::template byte<0>(next),
                      Lanes::template byte<1>(next)),
      weight);
}

inline void put(const SampleRow& row, int plane, int i, float value) {
  value = value * row.normalisation.scale[plane] + row.normalisation.bias[plane];
  if (row.half) {
    static_cast<uint16_t*>(row.out[plane])[i] = half_from_float(value);
  } else {
    static_cast<float*>(row.out[plane])[i] = value;
  }
}

inline void sample_scalar(const SampleRow& row, int begin) {
  for (int i = begin; i < row.columns.count; ++i) {
    const int first = row.columns.first[i];
    const Tap x{first, first + 1 < row.columns.from ? first + 1 : first, row.columns.weight[i]};
    const Rgb rgb = sample(row.frame, row.yuv, row.y, x);
    put(row, 0, i, rgb.r);
    put(row, 1, i, rgb.g);
    put(row, 2, i, rgb.b);
  }
}

template <class Lanes>
inline void put(const SampleRow& row, int plane, int i, typename Lanes::F value) {
  value = Lanes::add(Lanes::mul(value, Lanes::set(row.normalisation.scale[plane])),
                     Lanes::set(row.normalisation.bias[plane]));
  if (row.half) {
    Lanes::store_half(static_cast<uint16_t*>(row.out[plane]) + i, value);
  } else {
    Lanes::store(static_cast<float*>(row.out[plane]) + i, value);
  }
}

template <class Lanes>
inline void sample_vector(const SampleRow& row) {
  const Frame& frame = row.frame;
  const bool nv12 = frame.layout == Layout::NV12;
  const uint8_t* top = frame.pixels + row.y.first * frame.pitch;
  const uint8_t* bottom = frame.pixels + row.y.second * frame.pitch;
  const uint8_t* chroma_top = nv12 ? frame.chroma + (row.y.first / 2) * frame.chroma_pitch : nullptr;
  const uint8_t* chroma_bottom =
      nv12 ? frame.chroma + (row.y.second / 2) * frame.chroma_pitch : nullptr;
  const auto down = Lanes::set(row.y.weight);
  const int red = frame.layout == Layout::BGR ? 2 : 0;
  // Loads stay within the row: the last columns that could read past it are done one by one.
  const int last = nv12 ? frame.width - 4 : frame.width - 2;
  int i = 0;
  for (; i + Lanes::width <= row.columns.count; i += Lanes::width) {
    if (row.columns.first[i + Lanes::width - 1] > last) break;
    const auto x = Lanes::load(row.columns.first + i);
    const auto across = Lanes::load(row.columns.weight + i);
    Pixels<Lanes> value;
    if (nv12) {
      value = lerp<Lanes>(nv12_pair<Lanes>(top, chroma_top, row.yuv, x, across),
                          nv12_pair<Lanes>(bottom, chroma_bottom, row.yuv, x, across), down);
    } else {
      const auto offset = Lanes::thrice(x);
      value = lerp<Lanes>(packed_pair<Lanes>(top, offset, across),
                          packed_pair<Lanes>(bottom, offset, across), down);
    }
    put<Lanes>(row, red, i, value.r);
    put<Lanes>(row, 1, i, value.g);
    put<Lanes>(row, 2 - red, i, value.b);
  }
  sample_scalar(row, i);
}

inline void stretch_scalar(const float* source, const Columns& columns, int begin, float* out) {
  for (int i = begin; i < columns.count; ++i) {
    const int first = columns.first[i];
    const int second = first + 1 < columns.from ? first + 1 : first;
    out[i] = mix(source[first], source[second], columns.weight[i]);
  }
}

template <class Lanes>
inline void stretch_vector(const float* source, const Columns& columns, float* out) {
  int i = 0;
  for (; i + Lanes::width <= columns.count; i += Lanes::width) {
    if (columns.first[i + Lanes::width - 1] + 1 >= columns.from) break;
    const auto first = Lanes::load(columns.first + i);
    Lanes::store(out + i, lerp<Lanes>(Lanes::gather(source, first),
                                      Lanes::gather(source + 1, first),
                                      Lanes::load(columns.weight + i)));
  }
  stretch_scalar(source, columns, i, out);
}

// The compiler vectorises the plain loops below for the file's instruction set.

inline void mix_row(const float* a, const float* b, float weight, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = mix(a[i], b[i], weight);
}

inline int threshold_row(const float* __restrict a, const float* __restrict b, float weight,
                         float threshold, uint8_t* __restrict mask, int count) {
  int ones = 0;
  for (int i = 0; i < count; ++i) {
    const int one = mix(a[i], b[i], weight) > threshold;
    mask[i] = static_cast<uint8_t>(one);
    ones += one;
  }
  return ones;
}

inline void blend_row(uint8_t* bytes, const uint16_t add[3], int keep, int count) {
  constexpr int kPeriod = 96;  // a multiple of three bytes and of every vector's length in pairs
  uint16_t pattern[kPeriod];
  for (int i = 0; i < kPeriod; ++i) pattern[i] = static_cast<uint16_t>(add[i % 3] + 128);
  const uint16_t factor = static_cast<uint16_t>(keep);
  int i = 0;
  for (; i + kPeriod <= count; i += kPeriod) {
    for (int k = 0; k < kPeriod; ++k) {
      bytes[i + k] = static_cast<uint8_t>(
          static_cast<uint16_t>(bytes[i + k] * factor + pattern[k]) >> 8);
    }
  }
  for (int k = 0; i + k < count; ++k) {
    bytes[i + k] =
        static_cast<uint8_t>(static_cast<uint16_t>(bytes[i + k] * factor + pattern[k]) >> 8);
  }
}

inline void minimum_row(uint8_t* __restrict out, const uint8_t* __restrict bytes, int count) {
  for (int i = 0; i < count; ++i) out[i] = bytes[i] < out[i] ? bytes[i] : out[i];
}
