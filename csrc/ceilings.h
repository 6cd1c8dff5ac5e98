// The ceilings of the machine; see ceilings.cpp. All are sums over `threads` threads, measured for
// about `seconds`.
#pragma once
#include <cstdint>

#include "library/export.h"

// Bytes read plus bytes written per second, with `bytes` of both together in use. The faster of
// cached and streaming stores counts.
LIRANK_EXPORT double lirank_ceiling_copy(int64_t bytes, int threads, double seconds);
// Random rows of a table per second, with each cache line touched once. The best of four prefetch
// distances counts.
LIRANK_EXPORT double lirank_ceiling_gather(int64_t row_bytes, int64_t table_bytes, int threads,
                                           double seconds);
// Single-precision operations per second. A multiply-add counts as two.
LIRANK_EXPORT double lirank_ceiling_fma(int threads, double seconds);
// Single-precision exponentials per second.
LIRANK_EXPORT double lirank_ceiling_exp(int threads, double seconds);
