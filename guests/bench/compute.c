// The rows that only compute: what a translator is good or bad at, one thing a row.

#include <emmintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"

enum { WORDS = 1 << 20, SORTED = 1 << 14, STEPS = 1 << 16, CODE_STORES = 1 << 8 };

static uint64_t words[WORDS];
static uint32_t ring[WORDS], unsorted[SORTED], sorted[SORTED];
static volatile uint64_t kept;

static void fail(const char *what)
{
    printf("bench %s is wrong\n", what);
    exit(1);
}

// One cycle through 4 MiB in random order (Sattolo): each load needs the one before.
static void random_loads(uint64_t count)
{
    uint32_t at = 0;
    while (count--)
        for (int i = 0; i < STEPS; i++)
            at = ring[at];
    kept = at;
}

static void sequential_loads(uint64_t count)
{
    while (count--) {
        uint64_t sum = 0;
        for (int i = 0; i < WORDS; i++) {
            sum += words[i];
            __asm__ volatile("" : "+r"(sum)); // no vectors: they have a row of their own
        }
        if (sum != (uint64_t)WORDS * (WORDS - 1) / 2)
            fail("load");
    }
}

static int by_value(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void sorting(uint64_t count)
{
    while (count--) {
        memcpy(sorted, unsorted, sizeof sorted);
        qsort(sorted, SORTED, sizeof *sorted, by_value);
        for (int i = 1; i < SORTED; i++)
            if (sorted[i - 1] > sorted[i])
                fail("sort");
    }
}

static void vector_integers(uint64_t count)
{
    __m128i sum = _mm_setzero_si128(), one = _mm_set1_epi32(3);
    const __m128i *from = (const __m128i *)words;
    while (count--)
        for (int i = 0; i < 4096; i++) {
            __m128i x = _mm_load_si128(from + i);
            x = _mm_xor_si128(_mm_slli_epi32(x, 5), _mm_add_epi32(x, one));
            sum = _mm_add_epi32(_mm_shuffle_epi32(sum, 0x39), _mm_unpacklo_epi16(x, sum));
        }
    kept = (uint64_t)_mm_cvtsi128_si64(sum);
}

// Fibonacci by the definition: calls and returns, and little else.
static __attribute__((noinline, noclone)) uint32_t fibonacci(uint32_t n)
{
    __asm__ volatile("" : "+r"(n)); // or the compiler unfolds the recursion
    if (n < 2)
        return n;
    uint32_t one = fibonacci(n - 1);
    __asm__ volatile("" : "+r"(one));
    return one + fibonacci(n - 2);
}

enum { FIBONACCI = 20, FIBONACCI_IS = 6765, FIBONACCI_CALLS = 21891 };

static void calls(uint64_t count)
{
    while (count--)
        if (fibonacci(FIBONACCI) != FIBONACCI_IS)
            fail("call");
}

// A small interpreter: one indirect jump an operation, to one of sixteen targets by the top of a number that goes through
// `factor` and `summand` each time.
static __attribute__((noinline, noclone)) void interpreter(uint64_t count, uint32_t factor, uint32_t summand)
{
    static const void *const table[16] = {&&a, &&b, &&c, &&d, &&a, &&d, &&b, &&c,
                                          &&c, &&a, &&d, &&b, &&d, &&c, &&b, &&a};
    while (count--) {
        uint32_t seed = 1, x = 0, left = STEPS;
#define NEXT                                                                                                           \
    if (left-- == 0)                                                                                                   \
        continue;                                                                                                      \
    seed = seed * factor + summand;                                                                                    \
    goto *table[seed >> 28]
        NEXT;
    a:
        x += seed;
        NEXT;
    b:
        x ^= seed;
        NEXT;
    c:
        x -= 7;
        NEXT;
    d:
        x = x << 1 | x >> 31;
        kept = x;
        NEXT;
    }
}

// In no order that repeats soon: this measures how long the processor takes to notice that it guessed wrong.
static void indirect_jumps(uint64_t count) { interpreter(count, 1664525, 1013904223); }

// Again and again in the same order, which processors learn: what is left is what the jump itself costs.
static void repeated_jumps(uint64_t count) { interpreter(count, 1, 1u << 28); }

// Stores to data that shares its page, not its cache line, with code that runs in between.
static void code_page_stores(uint64_t count)
{
    // mov eax, edi; ret
    static const unsigned char code[] = {0x89, 0xf8, 0xc3};
    static unsigned char *page;
    if (!page) {
        page = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) {
            perror("bench: mmap");
            exit(1);
        }
        memcpy(page, code, sizeof code);
    }
    int (*identity)(int) = (int (*)(int))(uintptr_t)page;
    volatile uint32_t *data = (volatile uint32_t *)(page + 2048);
    while (count--)
        for (int i = 0; i < CODE_STORES; i++) {
            data[i & 255] = i;
            if (identity(i) != i)
                fail("codestore");
        }
}

void measure_compute(void)
{
    uint32_t seed = 1;
    for (uint32_t i = 0; i < WORDS; i++) {
        words[i] = i;
        ring[i] = i;
    }
    for (uint32_t i = WORDS - 1; i > 0; i--) {
        seed = seed * 1664525 + 1013904223;
        uint32_t other = (uint32_t)((uint64_t)seed * i >> 32), swapped = ring[i];
        ring[i] = ring[other];
        ring[other] = swapped;
    }
    for (int i = 0; i < SORTED; i++) {
        seed = seed * 1664525 + 1013904223;
        unsorted[i] = seed;
    }
    measure("random", "ns/load", random_loads, STEPS);
    measure("load", "ns/load", sequential_loads, WORDS);
    measure("sort", "ns/element", sorting, SORTED);
    measure("vector", "ns/16 bytes", vector_integers, 4096);
    measure("call", "ns/call", calls, FIBONACCI_CALLS);
    measure("indirect", "ns/jump", indirect_jumps, STEPS);
    measure("repeated", "ns/jump", repeated_jumps, STEPS);
    measure("codestore", "ns/store", code_page_stores, CODE_STORES);
}
