// Image episodes on a CPU: the choices of metalearn/rng.py and tasks/images.py, bit for bit, and the images as floats.
//
// One task at a time: its key, five keys of purposes, N classes, K + Q drawings of each, a turn of each class, an order of the
// support and of the query set; then each chosen row of bytes becomes a row of floats. Tasks are shared out among the threads.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15ull, SALT = 0xD1B54A32D192ED03ull;

static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
static uint64_t fold_in(uint64_t key, uint64_t name) { return mix(mix(key + (name + 1) * SALT) + (name + 1) * GAMMA); }
static uint64_t bits(uint64_t key, int64_t i) { return mix(key + (uint64_t)(i + 1) * GAMMA); }
static int64_t below(uint64_t drawn, int64_t high) { return (int64_t)((drawn >> 33) * (uint64_t)high) >> 31; }

using Sorted = std::vector<std::pair<int64_t, int64_t>>;

// The places of bits 0 .. size - 1 of a key, smallest bits first, as signed numbers.
static void permutation(uint64_t key, int64_t size, Sorted& order) {
  order.resize(size);
  for (int64_t i = 0; i < size; ++i) order[i] = {(int64_t)bits(key, i), i};
  std::sort(order.begin(), order.end());
}

// `count` different numbers below size, in random order: Floyd's sampling, or the front of a permutation of few.
static void choice(uint64_t key, int64_t size, int64_t count, uint64_t order_name, bool few, int64_t* out, std::vector<int64_t>& kept, Sorted& order) {
  if (few && (size <= 4 * count || size <= 32)) {
    permutation(key, size, order);
    for (int64_t i = 0; i < count; ++i) out[i] = order[i].second;
    return;
  }
  kept.clear();
  for (int64_t place = 0; place < count; ++place) {
    const int64_t top = size - count + place, drawn = below(bits(key, place), top + 1);
    kept.push_back(std::find(kept.begin(), kept.end(), drawn) == kept.end() ? drawn : top);
  }
  permutation(fold_in(key, order_name), count, order);
  for (int64_t i = 0; i < count; ++i) out[i] = kept[order[i].second];
}

struct Pool { const uint8_t* rows; int64_t width, classes, same, turned; const int64_t *counts, *starts; };

template <typename T> static void row_of(const uint8_t* from, T* to, int64_t width) {
  const T scale = T(1.0 / 255.0);
  for (int64_t i = 0; i < width; ++i) to[i] = T(from[i]) * scale;
}

// One set of a task: rows [N, each] of the classes' chosen ones, in a random order, with their labels.
template <typename T>
static void part(const Pool& pool, uint64_t key, const int64_t* rows, int64_t ways, int64_t each, int64_t stride, T* x, int64_t* y, Sorted& order) {
  permutation(key, ways * each, order);
  const auto at = [&](int64_t i) { return pool.rows + rows[order[i].second / each * stride + order[i].second % each] * pool.width; };
  for (int64_t i = 0; i < ways * each; ++i) for (int64_t b = 0; b < pool.width; b += 64) __builtin_prefetch(at(i) + b);
  for (int64_t i = 0; i < ways * each; ++i) { y[i] = order[i].second / each; row_of<T>(at(i), x + i * pool.width, pool.width); }
}

template <typename T>
static void episodes(const Pool& pool, uint64_t key, int64_t start, int64_t tasks, int64_t ways, int64_t shots, int64_t queries, uint64_t order_name,
                     T* sx, int64_t* sy, T* qx, int64_t* qy, int64_t* keys, int64_t* ids, int threads) {
  const int64_t each = shots + queries;
#pragma omp parallel num_threads(threads) if (threads > 1 && tasks > 1)
  {
    std::vector<int64_t> rows(ways * each), kept; Sorted order;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t) {
      const uint64_t own = fold_in(key, (uint64_t)(start + t)), of_examples = fold_in(own, 1), of_turns = fold_in(own, 2);
      keys[t] = (int64_t)own;
      choice(fold_in(own, 0), pool.classes, ways, order_name, true, ids + t * ways, kept, order);
      for (int64_t n = 0; n < ways; ++n) {
        const int64_t id = ids[t * ways + n]; int64_t* at = rows.data() + n * each;
        const bool equal = pool.same > 0;
        choice(fold_in(of_examples, n), equal ? pool.same : pool.counts[id], each, order_name, equal, at, kept, order);
        const int64_t turn = pool.turned ? below(bits(of_turns, n), 4) * pool.turned : 0;
        for (int64_t i = 0; i < each; ++i) at[i] += pool.starts[id] + turn;
      }
      part<T>(pool, fold_in(own, 3), rows.data(), ways, shots, each, sx + t * ways * shots * pool.width, sy + t * ways * shots, order);
      if (queries) part<T>(pool, fold_in(own, 4), rows.data() + shots, ways, queries, each, qx + t * ways * queries * pool.width, qy + t * ways * queries, order);
    }
  }
}

// size: 4 float, 8 double; same: examples of every class, 0 where counts differ; turned: rows of one turn, 0 without turns.
extern "C" void metalearn_episodes(int size, const void* pool_rows, int64_t width, int64_t classes, int64_t same, int64_t turned, const void* counts, const void* starts,
                                   uint64_t key, int64_t start, int64_t tasks, int64_t ways, int64_t shots, int64_t queries, uint64_t order_name,
                                   void* sx, void* sy, void* qx, void* qy, void* keys, void* ids, int threads) {
  const Pool pool{(const uint8_t*)pool_rows, width, classes, same, turned, (const int64_t*)counts, (const int64_t*)starts};
  if (size == 4) episodes<float>(pool, key, start, tasks, ways, shots, queries, order_name, (float*)sx, (int64_t*)sy, (float*)qx, (int64_t*)qy, (int64_t*)keys, (int64_t*)ids, threads);
  else episodes<double>(pool, key, start, tasks, ways, shots, queries, order_name, (double*)sx, (int64_t*)sy, (double*)qx, (int64_t*)qy, (int64_t*)keys, (int64_t*)ids, threads);
}
