// vocabulary_lookup: checks, CPU kernel, schema. The table is described in vocabulary_table.h.
//
// A look-up reads the pilot of the key's bucket, then the tag at its row: two cache misses that
// depend on one another. So keys go through in blocks of 64: hash all and prefetch their pilots,
// turn pilots into rows and prefetch their tags, compare the tags.
#include "checks.h"
#include "vocabulary_table.h"

namespace lirank {
namespace {

using namespace vocabulary;

constexpr const char* kOp = "vocabulary_lookup";
constexpr int64_t kChunk = 8192;
constexpr int kBlock = 64;

struct Table {
  Header header;
  const uint8_t *pilots, *remap, *tags;
  const uint8_t* row_base;  // may lie at any address, as may all else: read with at()

  template <typename T>
  static T at(const uint8_t* p, int64_t i) {
    T value;
    memcpy(&value, p + i * (int64_t)sizeof(T), sizeof(T));
    return value;
  }
  int64_t base(int64_t part) const { return at<int64_t>(row_base, part); }
};

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

void look_up(const Table& t, const int64_t* keys, int64_t n, int64_t oov, int64_t* rows) {
  const Header& h = t.header;
  const int tag_bits = (int)h.tag_bits;
  const uint64_t mask = (uint64_t(1) << tag_bits) - 1;
  uint64_t hash[kBlock];
  int64_t part[kBlock], bucket[kBlock];
  for (int64_t i = 0; i < n; ++i) {
    hash[i] = hash_key(keys[i], h.seed);
    part[i] = (int64_t)part_of(hash[i], (uint64_t)h.parts);
    bucket[i] = part[i] * h.buckets + (int64_t)bucket_of(hash[i], (uint64_t)h.buckets);
    __builtin_prefetch(t.pilots + bucket[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t base = t.base(part[i]), size = t.base(part[i] + 1) - base;
    const int64_t slot = (int64_t)slot_of(hash[i], t.pilots[bucket[i]], (uint64_t)(size + h.spare));
    const int64_t row =
        base + (slot < size ? slot : Table::at<uint16_t>(t.remap, part[i] * h.spare + slot - size));
    rows[i] = row;
    __builtin_prefetch(t.tags + row * tag_bits / 8);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t bit = rows[i] * tag_bits;
    // A row past the last is one of an empty part, or of a damaged table.
    bool known = rows[i] < h.keys;
    if (known && tag_bits)
      known =
          (Table::at<uint64_t>(t.tags + bit / 8, 0) >> bit % 8 & mask) == tag_of(hash[i], tag_bits);
    if (!known) rows[i] = oov;
  }
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
    for (int64_t i = begin; i < end; i += kBlock)
      look_up(t, from + i, end - i < kBlock ? end - i : kBlock, oov, rows + i);
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
