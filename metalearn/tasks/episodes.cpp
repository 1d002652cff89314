// Image episodes on a CPU: the choices of metalearn/rng.py and tasks/images.py, bit for bit, and the images as floats.
//
// One task at a time: its key, five keys of purposes, N classes, K + Q drawings of each, a turn of each class, an order of the
// support and of the query set; then each chosen row of bytes becomes a row of floats. Tasks are shared out among the threads.
// Rows lie all over the pool: each is asked for a few rows before it is read, the first ones while the task before is read.
#include <omp.h>

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

// The places 0 .. size - 1 in the order of their bits, smallest first, as signed numbers; equal ones stay in order.
struct Order {
  std::vector<int64_t> drawn, place;
  int64_t operator[](int64_t i) const { return place[i]; }
  void shuffle(uint64_t key, int64_t size) {
    drawn.resize(size); place.resize(size);
    for (int64_t i = 0; i < size; ++i) drawn[i] = (int64_t)bits(key, i);
    if (size > 128) {  // counting how many are smaller takes size^2 comparisons, eight at a time: for few it is faster
      for (int64_t i = 0; i < size; ++i) place[i] = i;
      std::stable_sort(place.begin(), place.end(), [&](int64_t a, int64_t b) { return drawn[a] < drawn[b]; });
      return;
    }
    const int64_t* v = drawn.data();
    for (int64_t i = 0; i < size; ++i) {
      int64_t smaller = 0;
      for (int64_t j = 0; j < i; ++j) smaller += v[j] <= v[i];
      for (int64_t j = i + 1; j < size; ++j) smaller += v[j] < v[i];
      place[smaller] = i;
    }
  }
};

// `count` different numbers below size, in random order: Floyd's sampling, or the front of a permutation of few.
static void choice(uint64_t key, int64_t size, int64_t count, uint64_t order_name, bool few, int64_t* out, std::vector<int64_t>& kept, Order& order) {
  if (few && (size <= 4 * count || size <= 32)) {
    order.shuffle(key, size);
    std::copy_n(order.place.begin(), count, out);
    return;
  }
  kept.clear();
  for (int64_t place = 0; place < count; ++place) {
    const int64_t top = size - count + place, drawn = below(bits(key, place), top + 1);
    kept.push_back(std::find(kept.begin(), kept.end(), drawn) == kept.end() ? drawn : top);
  }
  order.shuffle(fold_in(key, order_name), count);
  for (int64_t i = 0; i < count; ++i) out[i] = kept[order[i]];
}

struct Pool { const uint8_t* rows; int64_t width, classes, same, turned; const int64_t *counts, *starts; };

template <typename T> static void row_of(const uint8_t* from, T* to, int64_t width) {
  const T scale = T(1.0 / 255.0);
  for (int64_t i = 0; i < width; ++i) to[i] = T(from[i]) * scale;
}

// Where a task's rows lie, in the order in which they are wanted; the next one is planned before a task's rows are read.
struct Plan {
  std::vector<const uint8_t*> from; std::vector<int64_t> rows, kept; Order order;

  // One set: rows [N, each] of the classes' chosen ones, in a random order, with their labels.
  void part(const Pool& pool, uint64_t key, const int64_t* rows, int64_t ways, int64_t each, int64_t stride, int64_t* y) {
    order.shuffle(key, ways * each);
    for (int64_t i = 0; i < ways * each; ++i) {
      y[i] = order[i] / each;
      from.push_back(pool.rows + rows[y[i] * stride + order[i] % each] * pool.width);
    }
  }
};

struct Draw { uint64_t key; int64_t start, tasks, ways, shots, queries; uint64_t order_name; int64_t *sy, *qy, *keys, *ids; };

static void plan(const Pool& pool, const Draw& d, int64_t t, Plan& p) {
  const int64_t each = d.shots + d.queries, ways = d.ways;
  const uint64_t own = fold_in(d.key, (uint64_t)(d.start + t)), of_examples = fold_in(own, 1), of_turns = fold_in(own, 2);
  d.keys[t] = (int64_t)own;
  p.rows.resize(ways * each); p.from.clear();
  choice(fold_in(own, 0), pool.classes, ways, d.order_name, true, d.ids + t * ways, p.kept, p.order);
  for (int64_t n = 0; n < ways; ++n) {
    const int64_t id = d.ids[t * ways + n]; int64_t* at = p.rows.data() + n * each;
    const bool equal = pool.same > 0;
    choice(fold_in(of_examples, n), equal ? pool.same : pool.counts[id], each, d.order_name, equal, at, p.kept, p.order);
    const int64_t turn = pool.turned ? below(bits(of_turns, n), 4) * pool.turned : 0;
    for (int64_t i = 0; i < each; ++i) at[i] += pool.starts[id] + turn;
  }
  p.part(pool, fold_in(own, 3), p.rows.data(), ways, d.shots, each, d.sy + t * ways * d.shots);
  if (d.queries) p.part(pool, fold_in(own, 4), p.rows.data() + d.shots, ways, d.queries, each, d.qy + t * ways * d.queries);
}

constexpr int64_t AHEAD = 6;  // rows asked for before they are read: memory answers late, and takes few questions at once

template <typename T>
static void episodes(const Pool& pool, const Draw& d, T* sx, T* qx, int threads) {
  const int64_t support = d.ways * d.shots, query = d.ways * d.queries, size = support + query, width = pool.width;
#pragma omp parallel num_threads(threads) if (threads > 1 && d.tasks > 1)
  {
    const int64_t many = omp_get_num_threads(), me = omp_get_thread_num(), end = d.tasks * (me + 1) / many;
    Plan now, next;
    for (int64_t t = d.tasks * me / many; t < end; ++t, std::swap(now, next)) {
      if (t == d.tasks * me / many) plan(pool, d, t, now);
      const bool more = t + 1 < end;
      if (more) plan(pool, d, t + 1, next);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t then = i + AHEAD;
        const uint8_t* soon = then < size ? now.from[then] : more && then - size < size ? next.from[then - size] : now.from[i];
        for (int64_t b = 0; b < width; b += 64) __builtin_prefetch(soon + b);
        row_of<T>(now.from[i], i < support ? sx + (t * support + i) * width : qx + (t * query + i - support) * width, width);
      }
    }
  }
}

// size: 4 float, 8 double; same: examples of every class, 0 where counts differ; turned: rows of one turn, 0 without turns.
extern "C" void metalearn_episodes(int size, const void* pool_rows, int64_t width, int64_t classes, int64_t same, int64_t turned, const void* counts, const void* starts,
                                   uint64_t key, int64_t start, int64_t tasks, int64_t ways, int64_t shots, int64_t queries, uint64_t order_name,
                                   void* sx, void* sy, void* qx, void* qy, void* keys, void* ids, int threads) {
  const Pool pool{(const uint8_t*)pool_rows, width, classes, same, turned, (const int64_t*)counts, (const int64_t*)starts};
  const Draw d{key, start, tasks, ways, shots, queries, order_name, (int64_t*)sy, (int64_t*)qy, (int64_t*)keys, (int64_t*)ids};
  if (size == 4) episodes<float>(pool, d, (float*)sx, (float*)qx, threads);
  else episodes<double>(pool, d, (double*)sx, (double*)qx, threads);
}
