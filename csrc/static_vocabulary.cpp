// vocabulary_lookup: checks, CPU kernel, schema. The table is described in
// static_vocabulary_table.h.
#include "library/checks.h"
#include "simd/tables/static_vocabulary_kernels.h"

namespace lirank {
namespace {

using namespace vocabulary;

constexpr const char* kOp = "vocabulary_lookup";
constexpr int64_t kChunk = 8192;

[[noreturn]] void refuse_table(const char* what) {
  refuse(kOp, "table", "wanted the table of a StaticVocabulary, got ", what);
}

// After this no key can lead outside the table: parts have their rows in order, and the sizes
// that the header states are those of the tensor.
Table check_table(const Tensor& table) {
  const uint8_t* bytes = table.const_data_ptr<uint8_t>();
  if (table.numel() < (int64_t)sizeof(Header)) refuse_table("too few bytes");
  Table t;
  memcpy(&t.header, bytes, sizeof(Header));
  const Header& h = t.header;
  if (h.magic != kMagic) refuse_table("bytes that do not begin with LIRVOC01");
  const bool sane = h.keys >= 0 && h.keys <= kMostKeys && h.parts >= 1 &&
                    h.parts <= kMostKeys / kKeysPerPart && h.buckets >= 1 && h.buckets <= 1 << 16 &&
                    h.spare >= 1 && h.spare <= 1 << 16 && h.tag_bits >= 0 &&
                    h.tag_bits <= kMostTagBits;
  if (!sane) refuse_table("sizes out of range in its header");
  const Layout l = layout(h);
  if (table.numel() != l.size) refuse_table("another number of bytes than its header states");
  t.row_base = bytes + l.row_base, t.pilots = bytes + l.pilots;
  t.remap = bytes + l.remap, t.tags = bytes + l.tags;
  bool ordered = t.base(0) == 0 && t.base(h.parts) == h.keys;
  for (int64_t p = 0; p < h.parts; ++p) {
    const int64_t size = (int64_t)((uint64_t)t.base(p + 1) - (uint64_t)t.base(p));
    ordered &= size >= 0 && size <= (1 << 16) - h.spare;
  }
  if (!ordered) refuse_table("parts out of order");
  return t;
}

Tensor vocabulary_lookup(const Tensor& keys, const Tensor& table, int64_t oov) {
  check_same_dtype(kOp, "keys", keys, ScalarType::Long);
  check_same_dtype(kOp, "table", table, ScalarType::Byte);
  check_dim(kOp, "table", table, 1);
  const Tensor in = to_contiguous(keys), bytes = to_contiguous(table);
  const Table t = check_table(bytes);
  Tensor out = empty_like_type(in, ScalarType::Long);
  const int64_t* from = in.const_data_ptr<int64_t>();
  int64_t* rows = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, in.numel(), kChunk, [&](int64_t begin, int64_t end) {
    LIRANK_DISPATCH(look_up, t, from + begin, end - begin, oov, rows + begin);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def("vocabulary_lookup(Tensor keys, Tensor table, int oov=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) {
  m.impl("vocabulary_lookup", TORCH_BOX(&vocabulary_lookup));
}

}  // namespace lirank
