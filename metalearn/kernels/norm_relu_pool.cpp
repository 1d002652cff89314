// What follows a convolution: normalisation by the batch in hand, ReLU, maximum over windows; channels last, a group's own.
//
// y [G, B, H, W, F], gain and bias [G, F], p [G, B, H / w, W / w, F], w = 1 or 2 (an odd border counts in the statistics
// alone). With m, r the mean and 1 / sqrt(variance + EPS) of a group's channel over its n places, x = r (y - m):
//   0 forward    p = max(0, max over the window of gain x + bias)
//   1 gradient   of g for p: u = g at the chosen place (the first of equals), 0 elsewhere and where p = 0;
//                A = sum u, D = sum u x;   dy = gain r (u - A / n - x D / n), dgain = D, dbias = A
//   2 gradient of v dy + s dgain + t dbias:  V1 = sum v, V2 = sum v x, Q = sum v u - (A V1 + D V2) / n
//                k = s - gain r V2 / n, l = -gain r D / n:
//                dg = gain r (v - V1 / n - x V2 / n) + s x + t where chosen,   dgain = r Q,
//                dy = r (k u + l v) - r (k A + l V1) / n - x (r (k D + l V2) + gain r^2 Q) / n
// Each reads its arrays twice: for the sums and for the result. Sums are taken image by image and added in their order,
// so that results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "lanes.h"

constexpr double EPS = 1e-5;  // as in norm.py

struct Size { int64_t G, B, H, W, F, window; int64_t places() const { return H * W; } int64_t image() const { return H * W * F; }
  int64_t h() const { return H / window; } int64_t w() const { return W / window; } int64_t pooled() const { return h() * w() * F; } };

template <typename T> struct Register { typedef T V __attribute__((vector_size(BYTES))); };
template <typename V> struct Tag { using type = V; };
template <typename V, typename T> static inline V load(const T* at) { V value; std::memcpy(&value, at, sizeof(V)); return value; }
template <typename V, typename T> static inline void store(T* at, V value) { std::memcpy(at, &value, sizeof(V)); }

// body(tag, f) for every vector of channels, then for the channels left over one by one.
template <typename T, typename Body> static void channels(int64_t F, Body body) {
  int64_t f = 0;
  for (; f + Lanes<T>::N <= F; f += Lanes<T>::N) body(Tag<typename Register<T>::V>{}, f);
  for (; f < F; ++f) body(Tag<T>{}, f);
}

// sums(image), then of_group(group), then result(image), in an order and a sharing that give the same bits.
template <typename Sums, typename Group, typename Result> static void phases(const Size& z, int threads, Sums sums, Group of_group, Result result) {
  if (z.G >= threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t g = 0; g < z.G; ++g) {
      for (int64_t b = g * z.B; b < (g + 1) * z.B; ++b) sums(b);
      of_group(g);
      for (int64_t b = g * z.B; b < (g + 1) * z.B; ++b) result(b);
    }
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < z.G * z.B; ++b) sums(b);
  for (int64_t g = 0; g < z.G; ++g) of_group(g);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < z.G * z.B; ++b) result(b);
}

// The places of one window, which of them is chosen, and the value there.
template <typename V, int K> struct Window {
  V y[K], best, chosen;
  decltype(V{} > V{}) more[K];  // place k is above all before it
  template <typename T> Window(const T* at, const int64_t* offset, V scale, V shift) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) y[k] = load<V>(at + offset[k]);
    best = y[0] * scale + shift; chosen = y[0];
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k) { const V z = y[k] * scale + shift; more[k] = z > best; best = more[k] ? z : best; chosen = pick(k, y[k], chosen); }
  }
  V pick(int k, V a, V b) const { return more[k] ? a : b; }
  V passed(V given) const { return best > V{} ? given : V{}; }
  V at_chosen(const V* v) const {
    V found = v[0];
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k) found = pick(k, v[k], found);
    return found;
  }
  void spread(V given, V* u) const {
#pragma GCC unroll 4
    for (int k = K - 1; k > 0; --k) { u[k] = pick(k, given, V{}); given = pick(k, V{}, given); }
    u[0] = given;
  }
};

// Where a window's places lie from its first.
template <int K> struct Grid {
  int64_t offset[K];
  explicit Grid(const Size& z) { for (int k = 0; k < K; ++k) offset[k] = (k / z.window * z.W + k % z.window) * z.F; }
};

// body(first place in y, place in p) of every window of a row of windows; body(place) of every place outside of windows.
template <typename Body> static void windows(const Size& z, int64_t i, Body body) {
  for (int64_t j = 0; j < z.w(); ++j) body((i * z.window * z.W + j * z.window) * z.F, (i * z.w() + j) * z.F);
}
template <typename Body> static void border(const Size& z, Body body) {
  for (int64_t i = 0; i < z.H; ++i) for (int64_t j = i < z.h() * z.window ? z.w() * z.window : 0; j < z.W; ++j) body((i * z.W + j) * z.F);
}

// `many` rows of channels [F] for each image or group, zeros at first.
template <typename T> struct Rows {
  std::unique_ptr<T[]> all; int64_t F; int many;
  Rows(int64_t count, int many, int64_t F) : all(new T[count * many * F]()), F(F), many(many) {}
  T* at(int64_t i, int row) { return all.get() + (i * many + row) * F; }
};

// Mean and 1 / deviation of each group's channels; an image's sums are taken around its first place, against cancellation.
template <typename T, int K> static void forward(const T* y, const T* gain, const T* bias, T* p, T* mean, T* scale, const Size& z, int threads) {
  Rows<T> part(z.G * z.B, 2, z.F), line(z.G, 2, z.F); const Grid<K> grid(z);
  const auto sums = [&](int64_t b) {
    const T* in = y + b * z.image(); T *s1 = part.at(b, 0), *s2 = part.at(b, 1);
    for (int64_t i = 0; i < z.H; ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const V first = load<V>(in + f); V one{}, two{};
      for (int64_t j = 0; j < z.W; ++j) { const V d = load<V>(in + (i * z.W + j) * z.F + f) - first; one += d; two += d * d; }
      store(s1 + f, load<V>(s1 + f) + one); store(s2 + f, load<V>(s2 + f) + two);
    });
  };
  const auto of_group = [&](int64_t g) {
    for (int64_t f = 0; f < z.F; ++f) {
      const double m = z.places(); double total = 0, around = 0;
      for (int64_t b = g * z.B; b < (g + 1) * z.B; ++b) total += y[b * z.image() + f] + part.at(b, 0)[f] / m;
      const double middle = total / z.B;
      for (int64_t b = g * z.B; b < (g + 1) * z.B; ++b) {
        const double own = part.at(b, 0)[f] / m, off = y[b * z.image() + f] + own - middle;
        around += part.at(b, 1)[f] / m - own * own + off * off;
      }
      const double r = 1 / std::sqrt(std::max(around / z.B, 0.0) + EPS);
      mean[g * z.F + f] = (T)middle; scale[g * z.F + f] = (T)r;
      line.at(g, 0)[f] = (T)(gain[g * z.F + f] * r); line.at(g, 1)[f] = (T)(bias[g * z.F + f] - middle * gain[g * z.F + f] * r);
    }
  };
  const auto result = [&](int64_t b) {
    const T* in = y + b * z.image(); T* out = p + b * z.pooled(); const T *a = line.at(b / z.B, 0), *c = line.at(b / z.B, 1);
    for (int64_t i = 0; i < z.h(); ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const V A = load<V>(a + f), C = load<V>(c + f);
      windows(z, i, [&](int64_t from, int64_t to) { const Window<V, K> w(in + from + f, grid.offset, A, C); store(out + to + f, w.passed(w.best)); });
    });
  };
  phases(z, threads, sums, of_group, result);
}

template <typename T, int K>
static void gradient(const T* g, const T* y, const T* gain, const T* bias, const T* mean, const T* scale, T* dy, T* dgain, T* dbias, const Size& z, int threads) {
  Rows<T> part(z.G * z.B, 2, z.F), line(z.G, 4, z.F); const Grid<K> grid(z);
  const auto of_line = [&](int64_t q) {
    for (int64_t f = 0; f < z.F; ++f) { const int64_t at = q * z.F + f; line.at(q, 0)[f] = gain[at] * scale[at]; line.at(q, 1)[f] = bias[at] - mean[at] * gain[at] * scale[at]; }
  };
  for (int64_t q = 0; q < z.G; ++q) of_line(q);
  const auto sums = [&](int64_t b) {
    const int64_t q = b / z.B; const T *in = y + b * z.image(), *up = g + b * z.pooled(), *a = line.at(q, 0), *c = line.at(q, 1), *m = mean + q * z.F;
    for (int64_t i = 0; i < z.h(); ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const V A = load<V>(a + f), C = load<V>(c + f), M = load<V>(m + f); V one{}, two{};
      windows(z, i, [&](int64_t from, int64_t to) {
        const Window<V, K> w(in + from + f, grid.offset, A, C); const V u = w.passed(load<V>(up + to + f)); one += u; two += u * (w.chosen - M); });
      T *s1 = part.at(b, 0) + f, *s2 = part.at(b, 1) + f; store(s1, load<V>(s1) + one); store(s2, load<V>(s2) + two);
    });
  };
  const auto of_group = [&](int64_t q) {
    for (int64_t f = 0; f < z.F; ++f) {
      T A = 0, D = 0; const int64_t at = q * z.F + f; const T n = (T)(z.B * z.places()), a = line.at(q, 0)[f], r = scale[at];
      for (int64_t b = q * z.B; b < (q + 1) * z.B; ++b) { A += part.at(b, 0)[f]; D += part.at(b, 1)[f]; }
      D *= r; dgain[at] = D; dbias[at] = A;
      line.at(q, 2)[f] = -a * A / n; line.at(q, 3)[f] = -a * r * D / n;
    }
  };
  const auto result = [&](int64_t b) {
    const int64_t q = b / z.B; const T *in = y + b * z.image(), *up = g + b * z.pooled(); T* out = dy + b * z.image();
    const auto flat = [&](auto tag, int64_t f, int64_t at) {
      using V = typename decltype(tag)::type;
      store(out + at + f, load<V>(line.at(q, 2) + f) + load<V>(line.at(q, 3) + f) * (load<V>(in + at + f) - load<V>(mean + q * z.F + f)));
    };
    for (int64_t i = 0; i < z.h(); ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type;
      const V A = load<V>(line.at(q, 0) + f), C = load<V>(line.at(q, 1) + f), E = load<V>(line.at(q, 2) + f), R = load<V>(line.at(q, 3) + f), M = load<V>(mean + q * z.F + f);
      windows(z, i, [&](int64_t from, int64_t to) {
        const Window<V, K> w(in + from + f, grid.offset, A, C); V u[K]; w.spread(w.passed(load<V>(up + to + f)) * A, u);
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) store(out + from + grid.offset[k] + f, u[k] + (E + R * (w.y[k] - M)));
      });
    });
    border(z, [&](int64_t at) { channels<T>(z.F, [&](auto tag, int64_t f) { flat(tag, f, at); }); });
  };
  phases(z, threads, sums, of_group, result);
}

template <typename T, int K>
static void second(const T* v, const T* s, const T* t, const T* g, const T* y, const T* gain, const T* bias, const T* mean, const T* scale, const T* dgain, const T* dbias,
                   T* dg, T* dy, T* d2gain, const Size& z, int threads) {
  Rows<T> part(z.G * z.B, 3, z.F), line(z.G, 7, z.F); const Grid<K> grid(z);
  for (int64_t q = 0; q < z.G; ++q) for (int64_t f = 0; f < z.F; ++f) {
    const int64_t at = q * z.F + f; line.at(q, 0)[f] = gain[at] * scale[at]; line.at(q, 1)[f] = bias[at] - mean[at] * gain[at] * scale[at]; }
  const auto sums = [&](int64_t b) {
    const int64_t q = b / z.B; const T *in = y + b * z.image(), *of = v + b * z.image(), *up = g + b * z.pooled(), *m = mean + q * z.F;
    const auto add = [&](int row, int64_t f, auto value) { T* at = part.at(b, row) + f; store(at, load<decltype(value)>(at) + value); };
    for (int64_t i = 0; i < z.h(); ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const V A = load<V>(line.at(q, 0) + f), C = load<V>(line.at(q, 1) + f), M = load<V>(m + f); V one[K]{}, two[K]{}, three{};
      windows(z, i, [&](int64_t from, int64_t to) {
        const Window<V, K> w(in + from + f, grid.offset, A, C); V c[K];
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) { c[k] = load<V>(of + from + grid.offset[k] + f); one[k] += c[k]; two[k] += c[k] * (w.y[k] - M); }
        three += w.passed(load<V>(up + to + f)) * w.at_chosen(c);
      });
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) { one[0] += one[k]; two[0] += two[k]; }
      add(0, f, one[0]); add(1, f, two[0]); add(2, f, three);
    });
    border(z, [&](int64_t at) { channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const V c = load<V>(of + at + f); add(0, f, c); add(1, f, V(c * (load<V>(in + at + f) - load<V>(m + f)))); }); });
  };
  const auto of_group = [&](int64_t q) {
    for (int64_t f = 0; f < z.F; ++f) {
      const int64_t at = q * z.F + f; const T n = (T)(z.B * z.places()), r = scale[at], a = line.at(q, 0)[f], A = dbias[at], D = dgain[at];
      T V1 = 0, V2 = 0, W = 0;
      for (int64_t b = q * z.B; b < (q + 1) * z.B; ++b) { V1 += part.at(b, 0)[f]; V2 += part.at(b, 1)[f]; W += part.at(b, 2)[f]; }
      V2 *= r;
      const T Q = W - (A * V1 + D * V2) / n, k = s[at] - a * V2 / n, l = -a * D / n;
      d2gain[at] = r * Q;
      line.at(q, 2)[f] = r * k; line.at(q, 3)[f] = r * l; line.at(q, 4)[f] = -r * (k * A + l * V1) / n; line.at(q, 5)[f] = -r * (r * (k * D + l * V2) + a * r * Q) / n;
      line.at(q, 6)[f] = t[at] - a * V1 / n;
    }
  };
  const auto result = [&](int64_t b) {
    const int64_t q = b / z.B; const T *in = y + b * z.image(), *of = v + b * z.image(), *up = g + b * z.pooled(); T *out = dy + b * z.image(), *down = dg + b * z.pooled();
    for (int64_t i = 0; i < z.h(); ++i) channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const auto of_line = [&](int row) { return load<V>(line.at(q, row) + f); };
      const V A = of_line(0), C = of_line(1), U = of_line(2), L = of_line(3), E = of_line(4), R = of_line(5), T0 = of_line(6), M = load<V>(mean + q * z.F + f);
      windows(z, i, [&](int64_t from, int64_t to) {
        const Window<V, K> w(in + from + f, grid.offset, A, C); V c[K], u[K]; w.spread(w.passed(load<V>(up + to + f)) * U, u);
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) { c[k] = load<V>(of + from + grid.offset[k] + f); store(out + from + grid.offset[k] + f, V(u[k] + L * c[k] + (E + R * (w.y[k] - M)))); }
        store(down + to + f, w.passed(A * w.at_chosen(c) + U * (w.chosen - M) + T0));
      });
    });
    border(z, [&](int64_t at) { channels<T>(z.F, [&](auto tag, int64_t f) {
      using V = typename decltype(tag)::type; const auto of_line = [&](int row) { return load<V>(line.at(q, row) + f); };
      store(out + at + f, V(of_line(3) * load<V>(of + at + f) + of_line(4) + of_line(5) * (load<V>(in + at + f) - load<V>(mean + q * z.F + f)))); }); });
  };
  phases(z, threads, sums, of_group, result);
}

template <typename T, int K> static void run(int what, T* const* a, const Size& z, int threads) {
  if (what == 0) forward<T, K>(a[0], a[1], a[2], a[3], a[4], a[5], z, threads);
  else if (what == 1) gradient<T, K>(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], z, threads);
  else second<T, K>(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], z, threads);
}

// what: 0 forward, 1 gradient, 2 second; size: 4 float, 8 double; places: the arrays in the order of the function above.
extern "C" void metalearn_norm_relu_pool(int what, int size, void* const* places, int64_t G, int64_t B, int64_t H, int64_t W, int64_t F, int64_t window, int threads) {
  const Size z{G, B, H, W, F, window};
  if (size == 4) (window == 2 ? run<float, 4> : run<float, 1>)(what, (float* const*)places, z, threads);
  else (window == 2 ? run<double, 4> : run<double, 1>)(what, (double* const*)places, z, threads);
}
