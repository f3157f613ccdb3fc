// Work for several CPUs that checks itself: `smp SECONDS THREADS`; static, needs nothing.
//
// Each kind of work runs on THREADS threads at once. Anything lost, torn or stale ends the program with one line and
// status 1; the last line of a good run is "smp: verified N rounds".

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 64, PAGES = 16, PAGE = 4096, ROUNDS_A_TURN = 200 };

static int threads;
static atomic_int stop;
static atomic_ulong rounds[MAX_THREADS], total;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned long guarded;
static _Atomic(unsigned char *) shared;

static void fail(const char *what)
{
    fprintf(stderr, "smp: %s\n", what);
    _exit(1);
}

// A counter under a mutex (futexes) beside an atomic one.
static void count(void)
{
    for (int i = 0; i < ROUNDS_A_TURN; i++) {
        pthread_mutex_lock(&mutex);
        guarded++;
        pthread_mutex_unlock(&mutex);
        atomic_fetch_add(&total, 1);
    }
}

// Pages come, change their rights and go while the other threads of the process run: TLB shoot-downs.
static void remap(unsigned char tag)
{
    unsigned char *pages = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        fail("mmap");
    for (int page = 0; page < PAGES; page++) {
        if (pages[page * PAGE])
            fail("a fresh page is not empty");
        memset(pages + page * PAGE, tag + page, PAGE);
    }
    if (mprotect(pages, PAGES * PAGE, PROT_READ))
        fail("mprotect");
    for (int at = 0; at < PAGES * PAGE; at++)
        if (pages[at] != (unsigned char)(tag + at / PAGE))
            fail("a page has another's bytes");
    munmap(pages, PAGES * PAGE);
}

// One thread replaces the page that all look at: nobody may go on seeing what was there.
static void replace(int thread)
{
    unsigned char *page = atomic_load(&shared);
    if (thread == 0) {
        if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
            fail("mmap of the shared page");
        if (page[0])
            fail("the replaced page is still there");
        page[0] = 1;
    } else if (page[0] > 1) {
        fail("the shared page has bytes of nobody");
    }
}

// A child that changes its copy of a page and computes; the parent's copy stays.
static void fork_and_compute(unsigned char tag)
{
    static __thread unsigned char bytes[PAGE];
    memset(bytes, tag, PAGE);
    pid_t child = fork();
    if (child == 0) {
        uint32_t hash = 2166136261u, expected = 2166136261u;
        memset(bytes, tag + 1, PAGE);
        for (int i = 0; i < PAGE; i++)
            hash = (hash ^ bytes[i]) * 16777619u;
        for (int i = 0; i < PAGE; i++)
            expected = (expected ^ (unsigned char)(tag + 1)) * 16777619u;
        _exit(hash != expected);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        fail("a child computed something else");
    for (int i = 0; i < PAGE; i++)
        if (bytes[i] != tag)
            fail("a child's write is in its parent");
}

static void *work(void *number)
{
    int thread = (intptr_t)number;
    while (!atomic_load(&stop)) {
        count();
        remap(thread + atomic_load(&rounds[thread]));
        replace(thread);
        fork_and_compute(thread);
        atomic_fetch_add(&rounds[thread], 1);
        sched_yield();
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3 || (threads = atoi(argv[2])) < 1 || threads > MAX_THREADS)
        fail("usage: smp SECONDS THREADS");
    shared = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t ids[MAX_THREADS];
    for (intptr_t thread = 0; thread < threads; thread++)
        if (pthread_create(&ids[thread], 0, work, (void *)thread))
            fail("pthread_create");
    sleep(atoi(argv[1]));
    atomic_store(&stop, 1);
    unsigned long sum = 0;
    for (int thread = 0; thread < threads; thread++) {
        pthread_join(ids[thread], 0);
        if (!rounds[thread])
            fail("a thread never had its turn");
        sum += rounds[thread];
    }
    if (guarded != sum * ROUNDS_A_TURN || total != guarded)
        fail("increments were lost");
    printf("smp: verified %lu rounds\n", sum);
    return 0;
}
