// CUB's radix sort, over only as many bits as the row numbers have.
//
// PyTorch's sort takes all 32 bits of a key in four passes, and 64-bit positions. It reads and
// writes 12 bytes per entry in each pass. Here an entry has 8 bytes. 1,000 rows take two passes,
// and a million rows take three. This is a file of its own because CUB takes longer to compile than
// all other kernels.
#include "sort.cuh"

#include <cub/device/device_radix_sort.cuh>

namespace lirank::gpu {
namespace {

cudaError_t sort(const SortParams& p, size_t& bytes, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(p.work, bytes, p.rows, p.sorted_rows, p.positions,
                                         p.sorted_positions, p.count, 0, p.bits, stream);
}

}  // namespace

cudaError_t sort_work_bytes(int count, int bits, size_t* bytes) {
  SortParams p{};
  p.count = count, p.bits = bits;
  return sort(p, *bytes, nullptr);
}

cudaError_t sort_launch(const SortParams& p, cudaStream_t stream) {
  size_t bytes = p.work_bytes;
  return sort(p, bytes, stream);
}

}  // namespace lirank::gpu
