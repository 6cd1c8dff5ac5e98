// The machine's own ceilings; see ceilings.cpp. All are sums over `threads` threads, measured
// for about `seconds`.
#pragma once
#include <cstdint>

#include "export.h"

// Bytes read plus bytes written a second, where `bytes` of both together are in use;
// the better of cached and streamed stores.
LIRANK_EXPORT double lirank_ceiling_copy(int64_t bytes, int threads, double seconds);
// Rows a second of a table read at random, each cache line touched once; the best of four
// prefetch distances.
LIRANK_EXPORT double lirank_ceiling_gather(int64_t row_bytes, int64_t table_bytes, int threads,
                                           double seconds);
// Single-precision operations a second, a multiply-add being two.
LIRANK_EXPORT double lirank_ceiling_fma(int threads, double seconds);
// Single-precision exponentials a second.
LIRANK_EXPORT double lirank_ceiling_exp(int threads, double seconds);
