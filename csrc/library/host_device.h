// Marks functions that run on the host and on a GPU, so that one definition serves both.
#pragma once

#if defined(__CUDACC__)
#define LIRANK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LIRANK_HOST_DEVICE inline __attribute__((always_inline))
#endif
