// Vectors of the machine that this is compiled for: V is one register of numbers, N how many it holds.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE = 24;
#elif defined(__AVX2__)
constexpr int BYTES = 32, TILE = 12;
#else
constexpr int BYTES = 16, TILE = 12;
#endif

template <typename T> struct Lanes { typedef T V __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias)); static constexpr int N = BYTES / sizeof(T); };
