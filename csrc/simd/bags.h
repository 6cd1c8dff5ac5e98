// Offsets of bags, for one instruction set.

// Takes no branch per offset.
template <typename Offset>
LR_INLINE bool all_rise(const Offset* offsets, int64_t n) {
  int64_t falls = 0;
  for (int64_t i = 1; i < n; ++i) falls |= offsets[i] < offsets[i - 1];
  return !falls;
}

bool rise(const int64_t* offsets, int64_t n) { return all_rise(offsets, n); }
bool rise(const int32_t* offsets, int64_t n) { return all_rise(offsets, n); }
