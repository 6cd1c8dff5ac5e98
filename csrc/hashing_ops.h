// The front of murmur_hash and hash_strings: schemas, checks and registration, one text for CPU and
// CUDA. A backend B does the work in B::hash_all and B::hash_strings.
// Source: MurmurHash3_x64_128 (Austin Appleby, public domain).
#pragma once
#include "library/checks.h"

namespace lirank {

template <typename B>
struct HashingOps {
  using Device = typename B::Device;

  static Tensor murmur_hash(const Tensor& ids, int64_t seed) {
    const char* op = "murmur_hash";
    check_seed(op, seed);
    const Tensor wide = checked_ids(op, ids);
    const Device on(op, "ids", ids);
    return B::hash_all(on, to_contiguous(wide), (uint32_t)seed);
  }

  static Tensor hash_strings(const Tensor& bytes, const Tensor& offsets, int64_t seed) {
    const char* op = "hash_strings";
    check_seed(op, seed);
    check_same_dtype(op, "bytes", bytes, ScalarType::Byte);
    check_dim(op, "bytes", bytes, 1);
    check_same_dtype(op, "offsets", offsets, ScalarType::Long);
    check_dim(op, "offsets", offsets, 1);
    check_together(op, "offsets", offsets, bytes);
    LIRANK_CHECK(offsets.numel() > 0, op, "offsets", "wanted at least one offset, got shape ",
                 shape(offsets));
    const Device on(op, "bytes", bytes);
    return B::hash_strings(on, to_contiguous(bytes), to_contiguous(offsets), (uint32_t)seed);
  }

 private:
  static void check_seed(const char* op, int64_t seed) {
    LIRANK_CHECK(seed >= 0 && seed >> 32 == 0, op, "seed",
                 "wanted a number from 0 to 2^32 - 1, got ", seed);
  }
};

template <typename Library>
void define_hashing(Library& m) {
  m.def("murmur_hash(Tensor ids, int seed=0) -> Tensor");
  m.def("hash_strings(Tensor bytes, Tensor offsets, int seed=0) -> Tensor");
}

template <typename B, typename Library>
void register_hashing(Library& m) {
  m.impl("murmur_hash", TORCH_BOX(&HashingOps<B>::murmur_hash));
  m.impl("hash_strings", TORCH_BOX(&HashingOps<B>::hash_strings));
}

}  // namespace lirank
