// MurmurHash3_x64_128 on the GPU, h1. Source: Austin Appleby, public domain.
#include "hashing.cuh"

#include "launch.cuh"
#include "hashing_murmur.h"

namespace lirank::gpu {
namespace {

// One thread per id. It reads and writes 8 bytes, and accesses are coalesced, so copy bandwidth is
// the limit. By the datasheet of an H100 (3.35 TB/s) that is 209 G ids/s. The six 64-bit products,
// about 40 instructions, would allow 700 G ids/s. Assumes only the alignment of int64.
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

// One thread per string, byte by byte. Texts start at any address, and wider loads would read
// beyond the buffer at its ends. Neighboring threads read neighboring texts, so they share lines in
// L1. Bytes per key: the text, 8 of offset and 8 of hash. By the datasheet of an H100 the floor for
// "member:1234" (27 bytes) is 124 G keys/s, but the byte loads (11 per key) limit it to about 80 G.
// Assumes keys of tens of bytes, because a long text delays its whole warp.
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
