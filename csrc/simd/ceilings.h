// Bare loops behind the machine's ceilings, for one instruction set.

// Stores that go past the cache: without them a line is read before it is overwritten, and 256
// MB took 22 GB/s against 40 (2 threads of a Zen 3). `bytes` is a multiple of 64.
void stream_copy(char* to, const char* from, int64_t bytes) {
#if LIRANK_ISA >= 256
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(from + i + 1024);
    const __m256i a = _mm256_load_si256((const __m256i*)(from + i));
    const __m256i b = _mm256_load_si256((const __m256i*)(from + i + 32));
    _mm256_stream_si256((__m256i*)(to + i), a);
    _mm256_stream_si256((__m256i*)(to + i + 32), b);
  }
#else
  memcpy(to, from, bytes);
#endif
}

// Touches every cache line of rows drawn at random, `ahead` rows prefetched into the first-level
// cache, or with `near` into the second and `near` rows ahead from there into the first: what a
// look-up would cost if the rows only had to arrive. Returns a number that depends on every load,
// so that none is dropped. The table starts on a cache line.
uint64_t gather_rows(const char* table, int64_t row_bytes, const uint32_t* rows, int64_t n,
                     int64_t ahead, int64_t near) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i + ahead < n) {
      const int64_t next = (int64_t)rows[i + ahead] * row_bytes;
      if (near > 0) {
        const int64_t soon = (int64_t)rows[i + near] * row_bytes;
        for (int64_t j = next & ~63; j < next + row_bytes; j += 64)
          __builtin_prefetch(table + j, 0, 2);
        for (int64_t j = soon & ~63; j < soon + row_bytes; j += 64) __builtin_prefetch(table + j);
      } else {
        for (int64_t j = next & ~63; j < next + row_bytes; j += 64) __builtin_prefetch(table + j);
      }
    }
    const int64_t row = (int64_t)rows[i] * row_bytes;
    for (int64_t j = row & ~63; j < row + row_bytes; j += 64) sum += *(const uint64_t*)(table + j);
  }
  return sum;
}

// Twelve independent chains: an FMA takes 4 cycles and two start in each, so eight would do
// were none of them ever late.
float fma_chain(int64_t rounds) {
  f32 a[12];
  for (int i = 0; i < 12; ++i) a[i] = f32::set1(1.0f + i);
  const f32 b = f32::set1(0.999f), c = f32::set1(0.001f);
  for (int64_t n = 0; n < rounds; ++n)
    for (int i = 0; i < 12; ++i) a[i] = fma(a[i], b, c);
  f32 total = a[0];
  for (int i = 1; i < 12; ++i) total = total + a[i];
  return sum(total);
}

// exp of vectors that stay in registers; four at a time hide the latency of its polynomial.
float exp_chain(int64_t rounds) {
  f32 total[4], x[4];
  for (int i = 0; i < 4; ++i) total[i] = f32::set1(0), x[i] = f32::set1(-1.0f - i);
  const f32 step = f32::set1(1e-6f);
  for (int64_t n = 0; n < rounds; ++n)
    for (int i = 0; i < 4; ++i) {
      total[i] = total[i] + exp(x[i]);
      x[i] = x[i] + step;
    }
  return sum(total[0] + total[1]) + sum(total[2] + total[3]);
}

int64_t float_lanes() { return f32::N; }
