// Functions that liblirank.so exports to C and C++ in addition to the registered ops. Include this
// to call them, and to mark further exports.
#pragma once
#include <cstdint>

#define LIRANK_EXPORT extern "C" __attribute__((visibility("default")))

LIRANK_EXPORT const char* lirank_isa_name();

// Runs on PyTorch's threads, for code without Torch headers. Calls run(context, begin, end) for
// parts of [0, n) of at least `grain`. `run` must not throw.
LIRANK_EXPORT void lirank_parallel_for(int64_t n, int64_t grain,
                                       void (*run)(const void*, int64_t, int64_t),
                                       const void* context);
