// Row-wise quantized tables on the CPU: quantize, dequantize, pack, unpack.
#include "quantized_embedding_rows_ops.h"

#include "library/cpu_backend.h"
#include "library/huge_pages.h"
#include "library/lowest.h"
#include "simd/tables/quantized_embedding_kernels.h"

namespace lirank {
namespace {

using rowwise::Layout;

// A task reads and writes at least so many bytes. With fewer a second thread costs more than it
// saves.
constexpr int64_t kBytesPerTask = 64 * 1024;

// Packs the 4-bit codes of a row, two per byte. Returns false if one does not fit.
bool pack4(const int8_t* from, int64_t dim, uint8_t* row) {
  for (int64_t j = 0; j < dim; ++j) {
    if (from[j] < -8 || from[j] > 7) return false;
    row[j / 2] |= (uint8_t)((from[j] + 8) << (j & 1 ? 4 : 0));
  }
  return true;
}

struct Cpu : CpuBackend {
  static RowsResult<QuantizedRows> quantize(const Device&, const Tensor& w, int bits) {
    const int64_t rows = w.size(0), dim = w.size(1);
    Tensor codes = empty_like_type(w, ScalarType::Char);
    Tensor scale = new_tensor({rows}, ScalarType::Float);
    Tensor mid = new_tensor({rows}, ScalarType::Float);
    const float* pw = w.const_data_ptr<float>();
    int8_t* pc = codes.mutable_data_ptr<int8_t>();
    float *ps = scale.mutable_data_ptr<float>(), *pm = mid.mutable_data_ptr<float>();
    Lowest bad;
    torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / (4 * dim),
                                [&](int64_t i, int64_t end) {
                                  for (; i < end; ++i)
                                    if (!LIRANK_DISPATCH(quantize_row, pw + i * dim, dim, bits,
                                                         pc + i * dim, ps + i, pm + i))
                                      return bad.lower_to(i);
                                });
    return {{codes, scale, mid}, bad.get()};
  }

  static Tensor dequantize(const Device&, const Tensor& c, const Tensor& s, const Tensor& m) {
    Tensor out = empty_like_type(c, ScalarType::Float);
    const int64_t dim = c.size(1);
    const int8_t* pc = c.const_data_ptr<int8_t>();
    const float *ps = s.const_data_ptr<float>(), *pm = m.const_data_ptr<float>();
    float* po = out.mutable_data_ptr<float>();
    torch::stable::parallel_for(
        0, c.size(0), 1 + kBytesPerTask / (dim + 1), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            for (int64_t j = 0; j < dim; ++j)
              po[i * dim + j] = rowwise::dequantize(pc[i * dim + j], ps[i], pm[i]);
        });
    return out;
  }

  static RowsResult<Tensor> pack(const Device&, const Tensor& c, const Tensor& s, const Tensor& m,
                                 int bits) {
    const int64_t rows = c.size(0), dim = c.size(1);
    const Layout l = rowwise::layout(dim, bits);
    Tensor packed = new_tensor({rows, l.row_bytes}, ScalarType::Byte);
    const int8_t* pc = c.const_data_ptr<int8_t>();
    const float *ps = s.const_data_ptr<float>(), *pm = m.const_data_ptr<float>();
    uint8_t* table = packed.mutable_data_ptr<uint8_t>();
    use_huge_pages(table, rows * l.row_bytes);
    Lowest bad;
    const int64_t used = l.apart ? l.code_bytes : l.row_bytes;
    torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / dim, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        uint8_t* row = table + i * l.code_stride;
        const int8_t* from = pc + i * dim;
        std::memset(row, 0, (size_t)used);
        if (bits == 8)
          std::memcpy(row, from, (size_t)dim);
        else if (!pack4(from, dim, row))
          return bad.lower_to(i);
        const rowwise::Pair pair{ps[i], pm[i]};
        std::memcpy(table + rowwise::first_pair(l, rows) + i * l.pair_stride, &pair, sizeof pair);
      }
    });
    return {packed, bad.get()};
  }

  static QuantizedRows unpack(const Device&, const Tensor& packed, int64_t dim, int bits) {
    const Tensor p = to_contiguous(packed);
    const int64_t rows = p.size(0);
    const Layout l = rowwise::layout(dim, bits);
    Tensor codes = new_tensor({rows, dim}, ScalarType::Char);
    Tensor scale = new_tensor({rows}, ScalarType::Float);
    Tensor mid = new_tensor({rows}, ScalarType::Float);
    const uint8_t* table = p.const_data_ptr<uint8_t>();
    int8_t* pc = codes.mutable_data_ptr<int8_t>();
    float *ps = scale.mutable_data_ptr<float>(), *pm = mid.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, rows, 1 + kBytesPerTask / dim, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* row = table + i * l.code_stride;
        rowwise::Pair pair;
        std::memcpy(&pair, table + rowwise::first_pair(l, rows) + i * l.pair_stride, sizeof pair);
        ps[i] = pair.scale;
        pm[i] = pair.mid;
        for (int64_t j = 0; j < dim; ++j)
          pc[i * dim + j] = bits == 8 ? (int8_t)row[j] : (int8_t)rowwise::unpack4(row[j / 2], j);
      }
    });
    return {codes, scale, mid};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) { define_quantized_rows(m); }

STABLE_TORCH_LIBRARY_IMPL(lirank, CPU, m) { register_quantized_rows<Cpu>(m); }

}  // namespace lirank
