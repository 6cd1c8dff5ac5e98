// What lirank_ext.check_errors() reads, for Python (ctypes) and C++ servers alike.
#include "cuda_call.h"
#include "export.h"

static_assert(sizeof(lirank::gpu::Errors) == 6 * sizeof(int64_t), "six numbers");

// Waits for the current device; found: count, kind, position, value, table, limit. The findings
// are cleared. Returns 0, or the number of the CUDA error.
LIRANK_EXPORT int lirank_take_errors(int64_t* found) {
  return (int)lirank::gpu::take_errors((lirank::gpu::Errors*)found);
}
