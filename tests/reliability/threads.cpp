// PyTorch's parallel_for for runs under ThreadSanitizer: preloaded, it takes the place of the one
// in libtorch.
//
// ThreadSanitizer knows what std::thread orders, and nothing of libgomp, whose barriers are
// futexes in code that it does not see: every parallel loop would be a report. The loop is split
// whatever its grain, so that small inputs run in parallel too.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

int64_t threads() {
  const char* asked = std::getenv("LIRANK_TEST_THREADS");
  return asked != nullptr ? std::max(1, std::atoi(asked)) : 4;
}

thread_local bool inside = false;

}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t torch_parallel_for(
    int64_t begin, int64_t end, int64_t, void (*run)(int64_t, int64_t, void*), void* context) {
  const int64_t n = end - begin, parts = inside ? 1 : std::min(n, threads());
  std::vector<std::exception_ptr> thrown((size_t)std::max<int64_t>(parts, 0));
  std::vector<std::thread> running;
  for (int64_t part = 0; part < parts; ++part)
    running.emplace_back([=, &thrown] {
      inside = true;
      try {
        run(begin + n * part / parts, begin + n * (part + 1) / parts, context);
      } catch (...) {
        thrown[(size_t)part] = std::current_exception();
      }
    });
  for (std::thread& each : running) each.join();
  for (const std::exception_ptr& each : thrown)
    if (each) std::rethrow_exception(each);
  return 0;
}

extern "C" __attribute__((visibility("default"))) int32_t torch_get_num_threads(uint32_t* count) {
  *count = (uint32_t)threads();
  return 0;
}
