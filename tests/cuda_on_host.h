// CUDA kernels compiled as plain C++ and run on the host, so that a machine without a GPU can
// execute every line of them: the threads of a block are fibers that take turns at barriers and
// warp shuffles, blocks run one after another. It knows what kernels/*.cu use and no more.
// What it cannot show: races, speed, alignment faults of the hardware (it checks alignment itself
// where it can, by -fsanitize=alignment,bounds).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#define LIRANK_DEVICE_CODE 1

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

constexpr int kThreads = 256, kStack = 128 * 1024;

// Arrivals of one set of threads; the last one lets the others go.
struct Barrier {
  int count = 0;
  unsigned turn = 0;
};

// A fiber starts by swapcontext and goes on by longjmp, which asks nothing of the kernel.
struct Block {
  ucontext_t scheduler, fiber[kThreads];
  jmp_buf back, resume[kThreads];
  bool started[kThreads];
  std::vector<char> stacks = std::vector<char>((size_t)kThreads * kStack);
  bool done[kThreads];
  int current = 0;
  std::function<void()> body;
  Barrier whole, warp[kThreads / 32][32];
  uint64_t slot[kThreads];
};

inline Block& block() {
  static Block b;
  return b;
}

inline void yield() {
  Block& b = block();
  if (_setjmp(b.resume[b.current]) == 0) _longjmp(b.back, 1);
}

inline void wait(Barrier& barrier, int expected) {
  const unsigned turn = barrier.turn;
  if (++barrier.count == expected) {
    barrier.count = 0;
    ++barrier.turn;
    return;
  }
  while (barrier.turn == turn) yield();
}

inline void enter() {
  Block& b = block();
  b.body();
  b.done[b.current] = true;
  _longjmp(b.back, 1);
}

// Runs thread t until it waits or ends.
inline __attribute__((noinline)) void turn_of(int t) {
  Block& b = block();
  b.current = t;
  threadIdx = dim3(t);
  if (_setjmp(b.back)) return;
  if (b.started[t]) _longjmp(b.resume[t], 1);
  b.started[t] = true;
  swapcontext(&b.scheduler, &b.fiber[t]);
}

inline void run_block() {
  Block& b = block();
  for (int t = 0; t < kThreads; ++t) {
    getcontext(&b.fiber[t]);
    b.fiber[t].uc_stack.ss_sp = b.stacks.data() + (size_t)t * kStack;
    b.fiber[t].uc_stack.ss_size = kStack;
    makecontext(&b.fiber[t], enter, 0);
    b.done[t] = b.started[t] = false;
  }
  int left = kThreads;
  for (long rounds = 0; left > 0; ++rounds) {
    if (rounds > 50'000'000) {
      std::fprintf(stderr, "a barrier that not all threads reach\n");
      std::abort();
    }
    left = 0;
    for (int t = 0; t < kThreads; ++t) {
      if (b.done[t]) continue;
      turn_of(t);
      left += !b.done[t];
    }
  }
}

template <typename Kernel, typename Params>
void run(Kernel kernel, dim3 grid, const Params& params) {
  gridDim = grid;
  blockDim = dim3(kThreads);
  block().body = [&] { kernel(params); };
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block();
    }
}

// What `from` (a lane of the warp) brought; the lanes of `mask` meet before and after.
template <typename T>
T exchange(unsigned mask, T mine, int from) {
  Block& b = block();
  const int me = b.current, warp = me / 32, members = __builtin_popcount(mask);
  if (!(mask >> (me % 32) & 1) || !(mask >> from & 1)) {
    std::fprintf(stderr, "a shuffle with lanes outside its mask\n");
    std::abort();
  }
  Barrier& barrier = b.warp[warp][__builtin_ctz(mask)];
  std::memcpy(&b.slot[me], &mine, sizeof mine);
  wait(barrier, members);
  T other;
  std::memcpy(&other, &b.slot[warp * 32 + from], sizeof other);
  wait(barrier, members);
  return other;
}

}  // namespace on_host

#define LIRANK_LAUNCH(kernel, grid, stream, params) on_host::run(kernel, grid, params)

inline void __syncthreads() { on_host::wait(on_host::block().whole, on_host::kThreads); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int lanes) {
  return on_host::exchange(mask, x, (int)(threadIdx.x % 32) ^ lanes);
}
template <typename T>
T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {
  return on_host::exchange(mask, x, (int)(threadIdx.x % 32) / width * width + lane % width);
}
inline int __any_sync(unsigned mask, int x) {
  int any = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) any |= on_host::exchange(mask, x, lane) != 0;
  return any;
}
inline unsigned __ballot_sync(unsigned mask, int x) {
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) all |= (unsigned)(on_host::exchange(mask, x, lane) != 0) << lane;
  return all;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned x) {
  unsigned most = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) most = std::max(most, on_host::exchange(mask, x, lane));
  return most;
}
template <typename T>
T atomicAdd(T* at, T x) {
  const T before = *at;
  *at += x;
  return before;
}
template <typename T>
T atomicMin(T* at, T x) {
  const T before = *at;
  *at = std::min(before, x);
  return before;
}
template <typename T>
T __ldg(const T* at) {
  if ((uintptr_t)at % sizeof(T)) {
    std::fprintf(stderr, "a load of %zu bytes at %p\n", sizeof(T), (const void*)at);
    std::abort();
  }
  return *at;
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t all = (uint64_t)y << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= (uint32_t)(all >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// The runtime, as far as the glue calls it. Memory of the device is memory.
extern "C" {
inline cudaError_t lirank_host_copy(void* to, const void* from, size_t n) {
  std::memcpy(to, from, n);
  return cudaSuccess;
}
}
#define cudaGetLastError() cudaSuccess
#define cudaGetErrorString(status) "on the host"
#define cudaSetDevice(device) cudaSuccess
#define cudaGetDevice(device) (*(device) = 0, cudaSuccess)
#define cudaDeviceGetAttribute(value, what, device) (*(value) = 2, cudaSuccess)
#define cudaGetSymbolAddress(to, symbol) (*(to) = (void*)&(symbol), cudaSuccess)
#define cudaDeviceSynchronize() cudaSuccess
#define cudaStreamSynchronize(stream) cudaSuccess
#define cudaStreamIsCapturing(stream, status) (*(status) = cudaStreamCaptureStatusNone, cudaSuccess)
#define cudaMemcpy(to, from, n, kind) lirank_host_copy(to, from, n)
#define cudaMemcpyAsync(to, from, n, kind, stream) lirank_host_copy(to, from, n)
#define cudaMemset(to, value, n) (std::memset(to, value, n), cudaSuccess)
#define cudaMemsetAsync(to, value, n, stream) (std::memset(to, value, n), cudaSuccess)
