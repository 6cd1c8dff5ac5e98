// The lowest number that any thread has reported, such as the position of the first bad id.
#pragma once
#include <atomic>
#include <cstdint>

namespace lirank {

class Lowest {
 public:
  void lower_to(int64_t value) {
    int64_t seen = lowest_.load();
    while (value < seen && !lowest_.compare_exchange_weak(seen, value)) {
    }
  }
  // -1 if there is none.
  int64_t get() const {
    const int64_t lowest = lowest_.load();
    return lowest == INT64_MAX ? -1 : lowest;
  }

 private:
  std::atomic<int64_t> lowest_{INT64_MAX};
};

}  // namespace lirank
