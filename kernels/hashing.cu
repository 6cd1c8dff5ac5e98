// MurmurHash3_x64_128 on the GPU, h1. Source: Austin Appleby, public domain.
#include "hashing.cuh"

#include "launch.cuh"
#include "hashing_murmur.h"

namespace lirank::gpu {
namespace {

// One thread an id, 8 bytes in and 8 out, neighbours together: copy bandwidth. Floor on an H100
// by its datasheet (3.35 TB/s): 209 G ids/s, against six 64-bit products, about 40 instructions,
// which allow 700 G; so the copy binds. Assumes nothing of alignment beyond that of int64.
__global__ void __launch_bounds__(kBlock) murmur_kernel(const HashParams p) {
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < p.count;
       i += (int64_t)gridDim.x * kBlock)
    p.out[i] = (int64_t)murmur::hash_id((uint64_t)p.ids[i], p.seed);
}

__device__ inline uint64_t word_of(const uint8_t* p, int64_t bytes) {
  uint64_t w = 0;
  for (int b = 0; b < 8; ++b)
    if (b < bytes) w |= (uint64_t)__ldg(p + b) << 8 * b;
  return w;
}

__device__ inline uint64_t mix1(uint64_t k) {
  return murmur::rotate(k * murmur::kC1, 31) * murmur::kC2;
}
__device__ inline uint64_t mix2(uint64_t k) {
  return murmur::rotate(k * murmur::kC2, 33) * murmur::kC1;
}

__device__ uint64_t hash_bytes(const uint8_t* p, int64_t size, uint32_t seed) {
  uint64_t h1 = seed, h2 = seed;
  int64_t left = size;
  for (; left >= 16; left -= 16, p += 16) {
    h1 = (murmur::rotate(h1 ^ mix1(word_of(p, 8)), 27) + h2) * 5 + 0x52dce729;
    h2 = (murmur::rotate(h2 ^ mix2(word_of(p + 8, 8)), 31) + h1) * 5 + 0x38495ab5;
  }
  h1 ^= mix1(word_of(p, left)) ^ (uint64_t)size;
  h2 ^= mix2(word_of(p + 8, left - 8)) ^ (uint64_t)size;
  h1 += h2;
  h2 += h1;
  return murmur::finalize(h1) + murmur::finalize(h2);
}

// One thread a string, byte by byte: texts start anywhere, and a wider load would leave the
// buffer at its ends. Neighbouring threads read neighbouring texts, so the lines are shared in L1.
// Bytes: the text, 8 of offset and 8 of hash a key. Floor on an H100 by its datasheet: 27 bytes
// for "member:1234", 124 G keys/s; the byte loads (11 a key) bind first, at about 80 G.
// Assumes keys of tens of bytes: a long text holds its warp up.
__global__ void __launch_bounds__(kBlock) strings_kernel(const HashParams p) {
  for (int64_t i = (int64_t)blockIdx.x * kBlock + threadIdx.x; i < p.count;
       i += (int64_t)gridDim.x * kBlock) {
    const int64_t begin = p.offsets[i], end = p.offsets[i + 1];
    const bool good = begin >= 0 && begin <= end && end <= p.total && (i > 0 || begin == 0);
    if (!good) report(p.errors, Wrong::offsets, i, begin, end, p.total);
    p.out[i] = good ? (int64_t)hash_bytes(p.bytes + begin, end - begin, p.seed) : 0;
  }
}

}  // namespace

cudaError_t murmur_hash_launch(const HashParams& p, cudaStream_t stream) {
  return launch(murmur_kernel, dim3(blocks_for(p.count, kBlock)), stream, p);
}

cudaError_t hash_strings_launch(const HashParams& p, cudaStream_t stream) {
  return launch(strings_kernel, dim3(blocks_for(p.count, kBlock)), stream, p);
}

}  // namespace lirank::gpu
