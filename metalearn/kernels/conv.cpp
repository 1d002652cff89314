// Convolution over groups of images with a group's own weights, channels last: forward, input and weight gradients.
//
// A group is a task. Layouts, row-major: x [G, B, H, W, C], w [Gw, k, k, C, F] with Gw = G or 1 (shared), y [G, B, Ho, Wo, F];
// padding k / 2 on every side, Ho = (H + 2 (k / 2) - k) / s + 1. All three are one idea, a product of gathered rows: a tile of
// accumulators (pixels x channels) stays in registers while the taps and the input channels run past. No row of patches is ever
// written. Work is split by groups and tiles alone, so that results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "lanes.h"

constexpr int64_t BLOCK = 192 * 1024;  // bytes of input that a loop goes over again and again: within a core's second cache

struct Shape { int64_t G, B, H, W, C, F, k, s, Gw; int64_t pad() const { return k / 2; }
  int64_t Ho() const { return (H + 2 * pad() - k) / s + 1; } int64_t Wo() const { return (W + 2 * pad() - k) / s + 1; } };

// One tap of a product: where its rows lie from a pixel's base, and its panel of weights [depth, width].
template <typename T> struct Tap { int64_t offset; const T* panel; };

// out[p][:NV * L] = sum over taps t and depth d of in[base[p] + offset[t] + d] * panel[t][d][:], P pixels at once.
template <typename T, int P, int NV>
static void product_tile(const T* in, const int64_t* base, const Tap<T>* taps, int ntaps, int64_t depth, T* const* out, int width) {
  using V = typename Lanes<T>::V; constexpr int L = Lanes<T>::N;
  V acc[P][NV];
#pragma GCC unroll 24
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[p][n] = V{};
  for (int t = 0; t < ntaps; ++t) {
    const T* at[P];
#pragma GCC unroll 24
    for (int p = 0; p < P; ++p) at[p] = in + base[p] + taps[t].offset;
    const T* panel = taps[t].panel;
    for (int64_t d = 0; d < depth; ++d, panel += NV * L) {
      V row[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) row[n] = *(const V*)(panel + n * L);
#pragma GCC unroll 24
      for (int p = 0; p < P; ++p) {
        const T a = at[p][d];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) acc[p][n] += a * row[n];
      }
    }
  }
  if (width == NV * L) {
#pragma GCC unroll 24
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) *(V*)(out[p] + n * L) = acc[p][n];
  } else {
    for (int p = 0; p < P; ++p) {
      T whole[NV * L];
      for (int n = 0; n < NV; ++n) *(V*)(whole + n * L) = acc[p][n];
      std::memcpy(out[p], whole, width * sizeof(T));
    }
  }
}

// All pixels of a list, in tiles of P; the last tile repeats pixels rather than having a size of its own.
template <typename T, int NV>
static void product_pixels(const T* in, const int64_t* base, T* out, const int64_t* to, int64_t pixels, const Tap<T>* taps, int ntaps, int64_t depth, int width) {
  constexpr int P = TILE / NV;
  for (int64_t first = 0; first < pixels; first += P) {
    int64_t from[P]; T* dest[P];
    for (int p = 0; p < P; ++p) { const int64_t i = std::min(first + p, pixels - 1); from[p] = base[i]; dest[p] = out + to[i]; }
    product_tile<T, P, NV>(in, from, taps, ntaps, depth, dest, width);
  }
}

template <typename T> static int vectors(int64_t width) { constexpr int L = Lanes<T>::N; return width > 2 * L && TILE == 24 ? 4 : width > L ? 2 : 1; }

// Copy image [H, W, C] into the middle of zeros [Hp, Wp, C], `edge` rows and columns before it.
template <typename T>
static void pad_image(const T* x, T* out, int64_t H, int64_t W, int64_t C, int64_t Hp, int64_t Wp, int64_t edge) {
  std::memset(out, 0, Hp * Wp * C * sizeof(T));
  for (int64_t h = 0; h < H; ++h) std::memcpy(out + ((h + edge) * Wp + edge) * C, x + h * W * C, W * C * sizeof(T));
}

// Panels [blocks of width][tap][depth][width] of w [taps, C, F]; turned: depth is F and width runs over C.
template <typename T>
static void pack(const T* w, T* out, int64_t taps, int64_t C, int64_t F, int64_t step, bool turned) {
  const int64_t depth = turned ? F : C, wide = turned ? C : F;
  for (int64_t first = 0; first < wide; first += step) {
    const int64_t have = std::min(step, wide - first);
    for (int64_t t = 0; t < taps; ++t, out += depth * step) {
      const T* from = w + t * C * F;
      if (have < step) std::memset(out, 0, depth * step * sizeof(T));
      if (!turned) for (int64_t d = 0; d < depth; ++d) std::memcpy(out + d * step, from + d * F + first, have * sizeof(T));
      else for (int64_t d0 = 0; d0 < depth; d0 += 16)
        for (int64_t j = 0; j < have; ++j)
          for (int64_t d = d0; d < std::min(d0 + 16, depth); ++d) out[d * step + j] = from[(first + j) * F + d];
    }
  }
}

// A class of output pixels that share their taps: rows and columns of each, their bases and the taps' offsets.
struct Class { std::vector<int64_t> base, to; std::vector<int64_t> offset, tap; };

// The common run of forward and input gradient: pad each image, then every class of pixels against every block of channels.
template <typename T>
static void run_products(const T* in, const T* w, T* out, const Shape& z, bool turned, int64_t h, int64_t wd, int64_t depth, int64_t wide, int64_t edge, int64_t Hp, int64_t Wp,
                         int64_t out_image, const std::vector<Class>& classes, int threads) {
  const int NV = vectors<T>(wide); const int64_t step = NV * Lanes<T>::N, taps = z.k * z.k, blocks = (wide + step - 1) / step;
  const int64_t panels = blocks * taps * depth * step, image = Hp * Wp * depth;
  std::unique_ptr<T[]> packed(new T[z.Gw * panels]);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && z.Gw > 1)
  for (int64_t g = 0; g < z.Gw; ++g) pack(w + g * taps * z.C * z.F, packed.get() + g * panels, taps, z.C, z.F, step, turned);
  const int64_t many = std::max<int64_t>(1, std::min(z.B, BLOCK / (int64_t)(image * sizeof(T)))), parts = (z.B + many - 1) / many;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::unique_ptr<T[]> padded(new T[many * image]);
    std::vector<int64_t> base, to; std::vector<Tap<T>> row(taps);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < z.G * parts; ++item) {
      const int64_t g = item / parts, b0 = item % parts * many, nb = std::min(many, z.B - b0);
      const T* own = packed.get() + (z.Gw == 1 ? 0 : g * panels); T* dest = out + (g * z.B + b0) * out_image;
      for (int64_t b = 0; b < nb; ++b) pad_image(in + (g * z.B + b0 + b) * h * wd * depth, padded.get() + b * image, h, wd, depth, Hp, Wp, edge);
      for (const Class& c : classes) {
        base.clear(); to.clear();
        for (int64_t b = 0; b < nb; ++b) for (size_t i = 0; i < c.base.size(); ++i) { base.push_back(b * image + c.base[i] * depth); to.push_back(b * out_image + c.to[i] * wide); }
        for (int64_t q = 0; q < blocks; ++q) {
          for (size_t t = 0; t < c.tap.size(); ++t) row[t] = {c.offset[t] * depth, own + (q * taps + c.tap[t]) * depth * step};
          const int width = (int)std::min(step, wide - q * step);
          T* at = dest + q * step;
          if (NV == 4) product_pixels<T, 4>(padded.get(), base.data(), at, to.data(), base.size(), row.data(), c.tap.size(), depth, width);
          else if (NV == 2) product_pixels<T, 2>(padded.get(), base.data(), at, to.data(), base.size(), row.data(), c.tap.size(), depth, width);
          else product_pixels<T, 1>(padded.get(), base.data(), at, to.data(), base.size(), row.data(), c.tap.size(), depth, width);
        }
      }
    }
  }
}

template <typename T> static void forward(const T* x, const T* w, T* y, const Shape& z, int threads) {
  const int64_t Hp = z.H + 2 * z.pad(), Wp = z.W + 2 * z.pad(), Ho = z.Ho(), Wo = z.Wo();
  std::vector<Class> one(1);
  for (int64_t i = 0; i < Ho; ++i) for (int64_t j = 0; j < Wo; ++j) { one[0].base.push_back(i * z.s * Wp + j * z.s); one[0].to.push_back(i * Wo + j); }
  for (int64_t a = 0; a < z.k; ++a) for (int64_t b = 0; b < z.k; ++b) { one[0].offset.push_back(a * Wp + b); one[0].tap.push_back(a * z.k + b); }
  run_products(x, w, y, z, false, z.H, z.W, z.C, z.F, z.pad(), Hp, Wp, Ho * Wo * z.F, one, threads);
}

// Input pixel i gets tap a of output o = (i + pad - a) / s where that is whole: pixels of one remainder share their taps.
template <typename T> static void input_gradient(const T* g, const T* w, T* dx, const Shape& z, int threads) {
  const int64_t Ho = z.Ho(), Wo = z.Wo(), edge = (z.k - 1) / z.s + 1, tail = edge + (z.H + z.pad()) / z.s - Ho + 1;
  const int64_t Hp = Ho + edge + std::max<int64_t>(tail, 1), Wp = Wo + edge + std::max<int64_t>(edge + (z.W + z.pad()) / z.s - Wo + 1, 1);
  std::vector<Class> classes;
  for (int64_t r = 0; r < z.s; ++r) for (int64_t c = 0; c < z.s; ++c) {
    Class own;
    for (int64_t i = 0; i < z.H; ++i) if ((i + z.pad()) % z.s == r) for (int64_t j = 0; j < z.W; ++j) if ((j + z.pad()) % z.s == c) {
      own.base.push_back(((i + z.pad()) / z.s + edge) * Wp + (j + z.pad()) / z.s + edge); own.to.push_back(i * z.W + j); }
    for (int64_t a = r; a < z.k; a += z.s) for (int64_t b = c; b < z.k; b += z.s) { own.offset.push_back(-(a / z.s) * Wp - b / z.s); own.tap.push_back(a * z.k + b); }
    if (!own.base.empty()) classes.push_back(own);
  }
  if (z.s > z.k) std::memset(dx, 0, z.G * z.B * z.H * z.W * z.C * sizeof(T));
  run_products(g, w, dx, z, true, Ho, Wo, z.F, z.C, edge, Hp, Wp, z.H * z.W * z.C, classes, threads);
}

// dw[r][f] += sum over pixels p of x[base[p] + row[r]] * g[p][f], R rows at once.
template <typename T, int R, int NV>
static void outer_tile(const T* x, const int64_t* row, const int64_t* base, const T* g, int64_t gstride, int64_t pixels, T* dw, int64_t wstride, int rows, int width) {
  using V = typename Lanes<T>::V; constexpr int L = Lanes<T>::N;
  const T* at[R]; V acc[R][NV];
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r) {
    at[r] = x + row[std::min(r, rows - 1)];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[r][n] = V{};
  }
  for (int64_t p = 0; p < pixels; ++p, g += gstride) {
    V right[NV]; const int64_t b = base[p];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) right[n] = *(const V*)(g + n * L);
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      const T a = at[r][b];
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[r][n] += a * right[n];
    }
  }
  for (int r = 0; r < rows; ++r) {
    T whole[NV * L];
    for (int n = 0; n < NV; ++n) *(V*)(whole + n * L) = acc[r][n];
    for (int f = 0; f < width; ++f) dw[r * wstride + f] += whole[f];
  }
}

template <typename T, int NV>
static void outer_rows(const T* x, const int64_t* row, int64_t rows, const int64_t* base, const T* g, int64_t gstride, int64_t pixels, T* dw, int64_t F, int width) {
  constexpr int R = TILE >= 24 ? (NV == 4 ? 6 : 8) : 4;
  for (int64_t r = 0; r < rows; r += R) outer_tile<T, R, NV>(x, row + r, base, g, gstride, pixels, dw + r * F, F, (int)std::min<int64_t>(R, rows - r), width);
}

template <typename T> static void weight_gradient(const T* x, const T* g, T* dw, const Shape& z, int threads) {
  const int64_t Hp = z.H + 2 * z.pad(), Wp = z.W + 2 * z.pad(), Ho = z.Ho(), Wo = z.Wo(), image = Hp * Wp * z.C;
  const int NV = vectors<T>(z.F); const int64_t step = NV * Lanes<T>::N, Fp = (z.F + step - 1) / step * step, rows = z.k * z.k * z.C;
  const bool ragged = Fp != z.F;  // whole vectors are read: pad the channels of g where they do not fill them
  std::unique_ptr<T[]> padded(new T[z.G * z.B * image]), wide(ragged ? new T[z.G * z.B * Ho * Wo * Fp] : nullptr);
  const T* right = ragged ? wide.get() : g;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t b = 0; b < z.G * z.B; ++b) {
    pad_image(x + b * z.H * z.W * z.C, padded.get() + b * image, z.H, z.W, z.C, Hp, Wp, z.pad());
    if (ragged) for (int64_t p = 0; p < Ho * Wo; ++p) {
      T* to = wide.get() + (b * Ho * Wo + p) * Fp; std::memcpy(to, g + (b * Ho * Wo + p) * z.F, z.F * sizeof(T)); std::memset(to + z.F, 0, (Fp - z.F) * sizeof(T)); }
  }
  std::vector<int64_t> row(rows);
  for (int64_t t = 0; t < z.k * z.k; ++t) for (int64_t c = 0; c < z.C; ++c) row[t * z.C + c] = (t / z.k * Wp + t % z.k) * z.C + c;
  // Three times as much as above: the sums dw are read and written once for all of it.
  const int64_t many = std::max<int64_t>(1, std::min(z.B, 3 * BLOCK / (int64_t)((image + Ho * Wo * Fp) * sizeof(T))));
  std::vector<int64_t> base;
  for (int64_t b = 0; b < many; ++b) for (int64_t i = 0; i < Ho; ++i) for (int64_t j = 0; j < Wo; ++j) base.push_back(b * image + (i * z.s * Wp + j * z.s) * z.C);
  // Few groups: their rows are shared out too, in whole tiles.
  const int64_t parts = z.G >= 8 ? 1 : std::min<int64_t>((rows + 47) / 48, (16 + z.G - 1) / z.G), part = ((rows + parts - 1) / parts + 47) / 48 * 48;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t item = 0; item < z.G * parts; ++item) {
    const int64_t gr = item / parts, r0 = item % parts * part, nr = std::min(part, rows - r0);
    if (nr <= 0) continue;
    T* out = dw + (gr * rows + r0) * z.F; std::memset(out, 0, nr * z.F * sizeof(T));
    for (int64_t b = 0; b < z.B; b += many) {
      const int64_t pixels = std::min(many, z.B - b) * Ho * Wo; const T* in = padded.get() + (gr * z.B + b) * image;
      for (int64_t f = 0; f < z.F; f += step) {
        const T* r = right + (gr * z.B + b) * Ho * Wo * Fp + f; const int width = (int)std::min(step, z.F - f);
        if (NV == 4) outer_rows<T, 4>(in, row.data() + r0, nr, base.data(), r, Fp, pixels, out + f, z.F, width);
        else if (NV == 2) outer_rows<T, 2>(in, row.data() + r0, nr, base.data(), r, Fp, pixels, out + f, z.F, width);
        else outer_rows<T, 1>(in, row.data() + r0, nr, base.data(), r, Fp, pixels, out + f, z.F, width);
      }
    }
  }
}

// what: 0 forward (x, w -> y), 1 input gradient (g, w -> dx), 2 weight gradient (x, g -> dw); size: 4 float, 8 double.
extern "C" void metalearn_convolution(int what, int size, const void* a, const void* b, void* out, int64_t G, int64_t B, int64_t H, int64_t W, int64_t C, int64_t F, int64_t k, int64_t s, int64_t Gw, int threads) {
  const Shape z{G, B, H, W, C, F, k, s, Gw};
  if (size == 4) (what == 0 ? forward<float> : what == 1 ? input_gradient<float> : weight_gradient<float>)((const float*)a, (const float*)b, (float*)out, z, threads);
  else (what == 0 ? forward<double> : what == 1 ? input_gradient<double> : weight_gradient<double>)((const double*)a, (const double*)b, (double*)out, z, threads);
}
