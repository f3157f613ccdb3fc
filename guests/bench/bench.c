// Benchmark program for the inside of a guest; static, needs nothing but /tmp and busybox.
//
// Each measurement runs for about SLICE_NS and prints one line: "bench NAME VALUE UNIT", where VALUE
// is nanoseconds per operation. The host reads these lines (benches/engines.py). ONLY=NAME,NAME in the
// environment picks some of them.

#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

enum { SLICE_NS = 400000000, BUFFER_BYTES = 1 << 20, MATRIX = 64 };

static unsigned char buffer[BUFFER_BYTES], copy[BUFFER_BYTES];

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Whether ONLY, a list with commas, is absent or has `name`.
static int wanted(const char *name)
{
    const char *only = getenv("ONLY");
    size_t length = strlen(name);
    if (!only)
        return 1;
    for (const char *at = only; (at = strstr(at, name)); at += length)
        if ((at == only || at[-1] == ',') && (at[length] == ',' || !at[length]))
            return 1;
    return 0;
}

// Until it takes SLICE_NS.
void measure(const char *name, const char *unit, void (*work)(uint64_t), double per_count)
{
    if (!wanted(name))
        return;
    uint64_t count = 1;
    for (;;) {
        int64_t start = now_ns();
        work(count);
        int64_t took = now_ns() - start;
        if (took >= SLICE_NS || count >= 1ULL << 40) {
            printf("bench %s %.4f %s\n", name, (double)took / ((double)count * per_count), unit);
            return;
        }
        count = took < SLICE_NS / 16 ? count * 8 : (uint64_t)(count * (1.1 * SLICE_NS / took)) + 1;
    }
}

// LOOP_INSTRUCTIONS instructions an iteration, counted in the source below: xorshift and a sum.
enum { LOOP_INSTRUCTIONS = 12 };

static void integer_loop(uint64_t count)
{
    uint64_t x = 88172645463325252ULL, sum = 0, t;
    __asm__ volatile("1:\n\t"
                     "mov %[x], %[t]\n\t"
                     "shl $13, %[t]\n\t"
                     "xor %[t], %[x]\n\t"
                     "mov %[x], %[t]\n\t"
                     "shr $7, %[t]\n\t"
                     "xor %[t], %[x]\n\t"
                     "mov %[x], %[t]\n\t"
                     "shl $17, %[t]\n\t"
                     "xor %[t], %[x]\n\t"
                     "add %[x], %[sum]\n\t"
                     "dec %[n]\n\t"
                     "jnz 1b"
                     : [x] "+r"(x), [sum] "+r"(sum), [t] "=&r"(t), [n] "+r"(count)
                     :
                     : "cc");
}

static void system_calls(uint64_t count)
{
    while (count--)
        syscall(SYS_getppid);
}

static void wait_for(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "bench: a child failed with status %d\n", status);
        exit(1);
    }
}

static void fork_exec(uint64_t count)
{
    while (count--) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "bench", "nothing", (char *)0);
            _exit(1);
        }
        wait_for(child);
    }
}

// Two processes on one CPU hand a byte back and forth: two context switches a round.
static void context_switches(uint64_t count)
{
    int there[2], back[2];
    if (pipe(there) || pipe(back)) {
        perror("bench: pipe");
        exit(1);
    }
    char byte = 0;
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    while (count--)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) {
            perror("bench: the other end of the pipes");
            exit(1);
        }
    close(there[1]);
    close(back[0]);
    wait_for(child);
}

// First touches of anonymous pages, with the mapping and unmapping of FAULT_PAGES at a time.
enum { FAULT_PAGES = 256 };

static void page_faults(uint64_t count)
{
    while (count--) {
        char *pages = mmap(0, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) {
            perror("bench: mmap");
            exit(1);
        }
        for (int page = 0; page < FAULT_PAGES; page++)
            pages[page * 4096] = 1;
        munmap(pages, FAULT_PAGES * 4096);
    }
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

// SHA-256 (FIPS 180-4): the constants are the fractions of the cube roots of the first 64 primes, the
// initial hash those of the square roots of the first 8; computed rather than listed.
static uint32_t constants[64], hash[8];

static uint32_t fraction_of_root(int prime, int power)
{
    double root = prime, raised;
    for (int i = 0; i < 60; i++) { // Newton
        raised = power == 2 ? root : root * root;
        root -= (raised * root - prime) / (power * raised);
    }
    return (uint32_t)((root - (int)root) * 4294967296.0);
}

static void sha256_prepare(void)
{
    int found = 0;
    for (int candidate = 2; found < 64; candidate++) {
        int prime = 1;
        for (int d = 2; d * d <= candidate; d++)
            prime &= candidate % d != 0;
        if (!prime)
            continue;
        if (found < 8)
            hash[found] = fraction_of_root(candidate, 2);
        constants[found++] = fraction_of_root(candidate, 3);
    }
}

static void sha256_block(const unsigned char *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], block + 4 * i, 4);
        w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, hash, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t e = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
        uint32_t t1 = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
        uint32_t a = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
        uint32_t t2 = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        hash[i] += s[i];
}

static void sha256(uint64_t count)
{
    while (count--)
        for (int at = 0; at < 65536; at += 64)
            sha256_block(buffer + at);
}

// The digest of "abc" begins with ba7816bf (FIPS 180-4, example 1).
static void sha256_check(void)
{
    unsigned char block[64] = {'a', 'b', 'c', 0x80, [63] = 24};
    sha256_prepare();
    sha256_block(block);
    if (hash[0] != 0xba7816bf || hash[7] != 0xf20015ad) {
        printf("bench sha256 is wrong: %08x...%08x\n", hash[0], hash[7]);
        exit(1);
    }
}

static const char *busybox;

static void gzip(uint64_t count)
{
    while (count--) {
        pid_t child = fork();
        if (child == 0) {
            dup2(open("/dev/null", O_WRONLY), 1);
            execl(busybox, "gzip", "-c", "/tmp/data", (char *)0);
            _exit(1);
        }
        wait_for(child);
    }
}

static double left[MATRIX][MATRIX], right[MATRIX][MATRIX], product[MATRIX][MATRIX];

static void floating_point(uint64_t count)
{
    while (count--) {
        for (int i = 0; i < MATRIX; i++)
            for (int j = 0; j < MATRIX; j++) {
                double sum = 0;
                for (int k = 0; k < MATRIX; k++)
                    sum += left[i][k] * right[k][j];
                product[i][j] = sum;
            }
        __asm__ volatile("" : : "r"(product) : "memory");
    }
}

static void string_move(uint64_t count)
{
    while (count--) {
        void *to = copy, *from = buffer;
        size_t bytes = BUFFER_BYTES;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    }
}

// Text-like bytes: words of a small vocabulary, so that gzip finds what it finds in real files.
static void prepare(void)
{
    uint32_t seed = 1;
    for (int at = 0; at < BUFFER_BYTES; at++) {
        if (at % 7 == 0)
            seed = seed * 1664525 + 1013904223;
        buffer[at] = at % 7 == 6 ? ' ' : 'a' + (seed >> (8 + at % 7 * 2)) % 23;
    }
    int file = open("/tmp/data", O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (file < 0 || write(file, buffer, BUFFER_BYTES / 4) != BUFFER_BYTES / 4) {
        perror("/tmp/data");
        exit(1);
    }
    close(file);
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            left[i][j] = (i + j) % 7 + 0.5;
            right[i][j] = (i * j) % 5 + 0.25;
        }
    sha256_check();
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "nothing"))
        return 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    busybox = getenv("BUSYBOX") ? getenv("BUSYBOX") : "/bin/busybox";
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (sched_setaffinity(0, sizeof(one), &one)) {
        perror("bench: CPU 0");
        return 1;
    }
    prepare();
    measure("integer", "ns/instruction", integer_loop, LOOP_INSTRUCTIONS);
    measure("syscall", "ns/call", system_calls, 1);
    measure("switch", "ns/switch", context_switches, 2);
    measure("fault", "ns/page", page_faults, FAULT_PAGES);
    measure("forkexec", "us/process", fork_exec, 1e3);
    measure("sha256", "ns/byte", sha256, 65536);
    measure("gzip", "ns/byte", gzip, BUFFER_BYTES / 4);
    measure("float", "ns/multiply-add", floating_point, (double)MATRIX * MATRIX * MATRIX);
    measure_compute();
    measure("memcpy", "us/MiB", string_move, 1e3);
    printf("bench done 0 -\n");
    return 0;
}
