// What the next samples need, fetched while the products of these run.

// What is read or written soon: `bytes` from each of three addresses, fetched into L2 a part at
// a time while the products run.
struct Ahead {
  const char* from[3];
  int64_t bytes, at;
};

LR_INLINE void fetch_ahead(Ahead& ahead, int64_t bytes) {
  const int64_t stop = ahead.at + bytes < ahead.bytes ? ahead.at + bytes : ahead.bytes;
  for (int64_t i = ahead.at; i < stop; i += 64) {
    __builtin_prefetch(ahead.from[0] + i, 0, 2);
    __builtin_prefetch(ahead.from[1] + i, 0, 2);
    __builtin_prefetch(ahead.from[2] + i, 0, 2);
  }
  ahead.at = stop;
}

// The `rows` samples from `at` on, of three arrays of width d, are needed next.
template <typename T>
LR_INLINE Ahead next_rows(const T* a, const T* b, const T* c, int64_t at, int64_t rows,
                          int64_t batch, int64_t d) {
  const int64_t left = batch - at < rows ? batch - at : rows;
  return {{(const char*)(a + at * d), (const char*)(b + at * d), (const char*)(c + at * d)},
          left * d * (int64_t)sizeof(T),
          0};
}
