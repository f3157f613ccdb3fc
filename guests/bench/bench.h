// What the benchmark's files share.

#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>

// Run `work(count)` with growing counts until it takes long enough; print ns per count and `unit`.
void measure(const char *name, const char *unit, void (*work)(uint64_t), double per_count);

// The rows that only compute; each checks its result.
void measure_compute(void);

#endif
