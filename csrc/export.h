// What liblirank.so offers to a C or C++ caller besides the registered ops.
#pragma once
#include <cstdint>

#define LIRANK_EXPORT extern "C" __attribute__((visibility("default")))

LIRANK_EXPORT const char* lirank_isa_name();

// PyTorch's own threads, for code without a Torch header: run(context, begin, end) over [0, n)
// in runs of at least `grain`. `run` must not throw.
LIRANK_EXPORT void lirank_parallel_for(int64_t n, int64_t grain,
                                       void (*run)(const void*, int64_t, int64_t),
                                       const void* context);
