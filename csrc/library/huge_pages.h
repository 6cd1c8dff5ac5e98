// Huge pages for tables that are read at random.
//
// Reading a random row of a table with small pages costs a page walk in addition to its cache lines
// (benchmarks/CROSSOVERS.md has the times). Linux provides huge pages if its setting is "madvise"
// or "always". Otherwise the functions here do nothing.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lirank {

constexpr int64_t kHugePage = 2 << 20;

// Requests huge pages for those parts of [start, start + bytes) that fill whole pages, and returns
// their size in bytes. The memory must not have been touched yet.
inline int64_t use_huge_pages(const void* start, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t first = ((uintptr_t)start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = ((uintptr_t)start + (uintptr_t)bytes) / kHugePage * kHugePage;
  if (last <= first || madvise((void*)first, last - first, MADV_HUGEPAGE) != 0) return 0;
  return (int64_t)(last - first);
#else
  return 0;
#endif
}

// The same for memory in use. Linux 6.1 and later move it at once, older versions gradually.
inline int64_t move_to_huge_pages(const void* start, int64_t bytes) {
  const int64_t asked = use_huge_pages(start, bytes);
#if defined(__linux__)
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  const uintptr_t first = ((uintptr_t)start + kHugePage - 1) / kHugePage * kHugePage;
  if (asked > 0) madvise((void*)first, (size_t)asked, kCollapse);
#endif
  return asked;
}

}  // namespace lirank
