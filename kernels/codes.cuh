// Codes of quantized rows in registers: 8 or 16 bytes per load, converted to float without I2F.
//
// A code plus its bias is a byte u, and the float with the bits 0x4b0000uu is 2^23 + u. The
// conversion is therefore one byte permute and one subtraction. Both run at the full rate, and I2F
// at a quarter of it.
#pragma once
#include <cuda_runtime_api.h>

#include "launch.cuh"
#include "quantized_embedding_layout.h"

namespace lirank::gpu {

template <int bytes>
struct Words {
  uint32_t w[bytes / 4];
};

__device__ inline Words<16> load_words(const uint8_t* from, Words<16>*) {
  const uint4 x = __ldg((const uint4*)from);
  return {{x.x, x.y, x.z, x.w}};
}
__device__ inline Words<8> load_words(const uint8_t* from, Words<8>*) {
  const uint2 x = __ldg((const uint2*)from);
  return {{x.x, x.y}};
}

__device__ inline float from_byte(uint32_t word, int byte, float bias) {
  return __fadd_rn(__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 | byte)), -bias);
}

// total += scale * code, for the columns of one lane.
template <int bits, int bytes>
__device__ inline void add_codes(const Words<bytes>& codes, float scale,
                                 float (&total)[bytes * 8 / bits]) {
#pragma unroll
  for (int i = 0; i < bytes / 4; ++i) {
    if constexpr (bits == 8) {
      const uint32_t biased = codes.w[i] ^ 0x80808080u;
#pragma unroll
      for (int b = 0; b < 4; ++b)
        total[i * 4 + b] = __fmaf_rn(from_byte(biased, b, 8388736.0f), scale, total[i * 4 + b]);
    } else {
      const uint32_t low = codes.w[i] & 0x0f0f0f0fu, high = codes.w[i] >> 4 & 0x0f0f0f0fu;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        float* pair = total + i * 8 + b * 2;
        pair[0] = __fmaf_rn(from_byte(low, b, 8388616.0f), scale, pair[0]);
        pair[1] = __fmaf_rn(from_byte(high, b, 8388616.0f), scale, pair[1]);
      }
    }
  }
}

__device__ inline rowwise::Pair load_pair(const uint8_t* at) {
  const float2 x = __ldg((const float2*)at);  // rows and pairs start on 8 bytes
  return {x.x, x.y};
}

}  // namespace lirank::gpu
